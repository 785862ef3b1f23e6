//! The configuration. The input is a file, a NUL, and the lines of an environment.
#![no_main]

use std::path::PathBuf;
use std::sync::LazyLock;
use std::time::Duration;

use libfuzzer_sys::fuzz_target;
use portcullis::config::{Overrides, load};

/// The configuration file of this process, in memory if the system has `/dev/shm`.
static FILE: LazyLock<PathBuf> = LazyLock::new(|| {
    let memory = PathBuf::from("/dev/shm");
    let folder = if memory.is_dir() {
        memory
    } else {
        std::env::temp_dir()
    };
    folder.join(format!("portcullis-fuzz-{}.toml", std::process::id()))
});

fuzz_target!(|text: &str| {
    let (file, environment) = text.split_once('\0').unwrap_or((text, ""));
    // Skip configurations that name further files: their contents are not part of the input.
    if text.contains('/') && text.contains("_file") {
        return;
    }
    std::fs::write(&*FILE, file).expect("a file");
    let overrides = Overrides {
        files: vec![FILE.clone()],
        values: Vec::new(),
    };
    let environment = environment
        .lines()
        .filter_map(|line| line.split_once('='))
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    match load(&overrides, environment) {
        Err(refused) => assert!(!refused.to_string().is_empty()),
        Ok(config) => {
            assert!(
                config.check().is_ok(),
                "a loaded configuration passes its checks"
            );
            assert!(config.tokens.access.0 <= Duration::from_secs(15 * 60));
            assert!(config.tokens.code.0 <= Duration::from_secs(10 * 60));
            assert!(config.keys.rotate_every.0 <= Duration::from_secs(180 * 86_400));
            assert!(config.keys.lead().0 < config.keys.rotate_every.0);
            let _ = config.issuer();
            let _ = config.database_url();
        }
    }
});
