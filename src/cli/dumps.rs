//! Prevents memory dumps. The memory of this process contains private keys, so it must neither be written to a
//! file nor be read by another process of the same account.

use rustix::process::{Resource, Rlimit, setrlimit};

/// Disables core files and, on Linux, `ptrace` and `/proc/PID/mem` for unprivileged processes.
///
/// # Errors
/// The error of the operating system.
pub fn forbid() -> rustix::io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    #[cfg(target_os = "linux")]
    rustix::process::set_dumpable_behavior(rustix::process::DumpableBehavior::NotDumpable)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn process_memory_is_not_dumped() {
        forbid().unwrap();
        let limit = rustix::process::getrlimit(Resource::Core);
        assert_eq!((limit.current, limit.maximum), (Some(0), Some(0)));
        #[cfg(target_os = "linux")]
        assert!(matches!(
            rustix::process::dumpable_behavior(),
            Ok(rustix::process::DumpableBehavior::NotDumpable)
        ));
    }
}
