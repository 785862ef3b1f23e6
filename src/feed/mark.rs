//! The mark file: how far the feed was, kept beside the KEK and never beside the database. A database
//! that is behind it was restored from an older copy.

use std::path::{Path, PathBuf};

use super::Place;
use crate::time::Timestamp;

const NAME: &str = "feed.mark";

/// Where the mark is kept, and for which database: the id of its first server secret, which a copy of
/// the database carries and another database does not.
#[derive(Clone, Debug)]
pub struct MarkFile {
    path: PathBuf,
    database: String,
}

impl MarkFile {
    /// Beside the KEK file, if the first KEK is one.
    pub fn beside(keks: &[String], database: &str) -> Option<Self> {
        let kek = keks.iter().find_map(|kek| kek.strip_prefix("file:"))?;
        Some(Self {
            path: Path::new(kek).with_file_name(NAME),
            database: database.to_owned(),
        })
    }

    /// The mark of this database. None: there was none, or it is of another database.
    pub fn read(&self) -> Option<Place> {
        let text = std::fs::read_to_string(&self.path).ok()?;
        let mut words = text.split_whitespace();
        if words.next()? != self.database {
            return None;
        }
        Some(Place {
            epoch: words.next()?.parse().ok()?,
            seq: words.next()?.parse().ok()?,
            beat: Timestamp::from_micros(words.next()?.parse().ok()?),
        })
    }

    /// Moves the mark: whole or not at all.
    ///
    /// # Errors
    /// Of the file system, as where the folder of the KEK is read-only.
    pub fn write(&self, place: &Place) -> std::io::Result<()> {
        let draft = self
            .path
            .with_extension(format!("mark.{}", std::process::id()));
        let (database, beat) = (&self.database, place.beat.micros());
        let line = format!("{database} {} {} {beat}\n", place.epoch, place.seq);
        std::fs::write(&draft, line)?;
        std::fs::rename(draft, &self.path)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mark_is_read_back_for_its_own_database_alone() {
        let folder = std::env::temp_dir().join(format!("portcullis-mark-{}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        let keks = [
            "env:OTHER".to_owned(),
            format!("file:{}", folder.join("kek").display()),
        ];
        let mark = MarkFile::beside(&keks, "one").unwrap();
        assert_eq!(mark.read(), None);
        let place = Place {
            epoch: 3,
            seq: 7,
            beat: Timestamp::from_micros(1_800_000_000_000_001),
        };
        mark.write(&place).unwrap();
        assert_eq!(mark.read(), Some(place));
        assert_eq!(MarkFile::beside(&keks, "two").unwrap().read(), None);
        assert!(MarkFile::beside(&keks[..1], "one").is_none());
        std::fs::remove_dir_all(&folder).unwrap();
    }
}
