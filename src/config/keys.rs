//! Section `keys`: signing keys and the key that encrypts them.

use serde::{Deserialize, Serialize};

use super::Refused;

/// Signing keys.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Keys {
    /// Where the key-encrypting keys come from: `file:PATH` (mode 0600), `credential:NAME`
    /// (systemd) or `env:NAME`; 32 bytes in base64. The first seals, all open.
    /// Default `["file:keys/kek"]`.
    pub kek: Vec<String>,
    /// Size of RSA keys: 2048 (default), 3072 or 4096 bits.
    pub rsa_bits: usize,
}

impl Default for Keys {
    fn default() -> Self {
        Self {
            kek: vec!["file:keys/kek".to_owned()],
            rsa_bits: 2_048,
        }
    }
}

impl Keys {
    pub(super) fn check(&self) -> Result<(), Refused> {
        if self.kek.is_empty() {
            return Err(Refused::key("keys.kek", "names no key-encrypting key"));
        }
        if let Some(odd) = self.kek.iter().find(|source| {
            !matches!(source.split_once(':'), Some(("file" | "credential" | "env", name)) if !name.is_empty())
        }) {
            return Err(Refused::key(
                "keys.kek",
                format!("`{odd}` is none of file:PATH, credential:NAME, env:NAME"),
            ));
        }
        if ![2_048, 3_072, 4_096].contains(&self.rsa_bits) {
            return Err(Refused::key("keys.rsa_bits", "must be 2048, 3072 or 4096"));
        }
        Ok(())
    }
}
