//! The audit mark: the newest head of the audit chain that a machine has seen, stored in a file beside the KEK
//! and never in the database. A chain that lacks this head was shortened or replaced.

use std::path::PathBuf;

use super::high_water_mark::{places, replace};
use crate::time::Timestamp;

/// A head of the audit chain.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AuditHead {
    /// The number of the newest seal.
    pub seq: i64,
    /// The seal, in base64url.
    pub seal: String,
    /// When its event happened.
    pub at: Timestamp,
}

/// The file `audit-ID.mark` of one database, named like its high-water mark.
#[derive(Clone, Debug)]
pub struct AuditMark {
    folders: Vec<PathBuf>,
    database: String,
}

impl AuditMark {
    /// Returns the mark beside the KEK files; `None` where no KEK is a file.
    pub fn beside(keks: &[String], database: &str) -> Option<Self> {
        let (folders, database) = places(keks, database)?;
        Some(Self { folders, database })
    }

    /// Returns the marked head, the newest if there are several.
    pub fn read(&self) -> Option<AuditHead> {
        let heads = self.folders.iter().filter_map(|folder| {
            let text = std::fs::read_to_string(folder.join(self.name())).ok()?;
            let mut words = text.split_whitespace();
            (words.next()? == self.database).then_some(())?;
            Some(AuditHead {
                seq: words.next()?.parse().ok()?,
                seal: words.next()?.to_owned(),
                at: Timestamp::from_micros(words.next()?.parse().ok()?),
            })
        });
        // After a recovery the numbers start lower, but time continues.
        heads.max_by_key(|head| (head.at, head.seq))
    }

    /// Replaces the mark. The caller has checked that the chain contains the previous mark.
    ///
    /// # Errors
    /// Of the file system, for example if the folder of the KEK is read-only.
    pub fn write(&self, head: &AuditHead) -> std::io::Result<()> {
        let Some(folder) = self.folders.first() else {
            return Ok(());
        };
        let (database, at) = (&self.database, head.at.micros());
        let line = format!("{database} {} {} {at}\n", head.seq, head.seal);
        // Not flushed to disk: the next head follows within a second of the next event.
        replace(&folder.join(self.name()), &line, false)
    }

    fn name(&self) -> String {
        format!("audit-{}.mark", self.database)
    }
}
