//! What Linux says of a process that runs (proc(5)), and the limits that it is given.

use std::process::Command;

use rustix::process::{Resource, Rlimit};

/// A running process.
#[derive(Clone, Copy)]
pub struct Proc(pub u32);

impl Proc {
    /// Memory in use, in MiB.
    pub fn resident(self) -> u64 {
        self.status("VmRSS:") / 1_024
    }

    /// The most that it ever was, in MiB.
    pub fn peak(self) -> u64 {
        self.status("VmHWM:") / 1_024
    }

    /// Address space, in bytes.
    pub fn address_space(self) -> u64 {
        self.status("VmSize:") * 1_024
    }

    /// Threads.
    pub fn threads(self) -> u64 {
        self.status("Threads:")
    }

    fn status(self, field: &str) -> u64 {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.0)).unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix(field));
        line.unwrap()
            .split_whitespace()
            .next()
            .unwrap()
            .parse()
            .unwrap()
    }

    /// Processor time used, in seconds.
    pub fn cpu(self) -> f64 {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.0)).unwrap();
        let fields: Vec<&str> = stat
            .rsplit_once(')')
            .unwrap()
            .1
            .split_whitespace()
            .collect();
        let ticks: u64 = fields[11].parse::<u64>().unwrap() + fields[12].parse::<u64>().unwrap();
        ticks as f64 / rustix::param::clock_ticks_per_second() as f64
    }

    /// From now on it may have so much of a resource, or as much as before. Whoever is not root may do this
    /// to processes of their own only, and root to nobody else's: so it is done as `user`, if one is named.
    pub fn limit(self, user: Option<u32>, (name, resource): (&str, Resource), most: Option<u64>) {
        let (mut words, own) = (Vec::new(), user.map(|user| user.to_string()));
        if let Some(user) = &own {
            words.extend([
                "setpriv",
                "--reuid",
                user,
                "--regid",
                user,
                "--clear-groups",
            ]);
        }
        // The hard limit stays, which it has from us.
        let most = most.or(rustix::process::getrlimit(resource).maximum);
        let most = most.map_or("unlimited".to_owned(), |most| most.to_string());
        let (limit, process) = (format!("--{name}={most}:"), self.0.to_string());
        words.extend(["prlimit", "--pid", &process, &limit]);
        let done = Command::new(words[0]).args(&words[1..]).status().unwrap();
        assert!(done.success(), "{words:?}");
    }
}

/// How many files this process and those that it starts may have open: as many as the system lets them.
pub fn most_files() -> usize {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    rustix::process::setrlimit(Resource::Nofile, raised).unwrap();
    limit
        .maximum
        .map_or(usize::MAX, |most| usize::try_from(most).unwrap())
}

/// So many processes that do nothing but use the processor; they end with the test.
pub struct Hogs(Vec<std::process::Child>);

impl Hogs {
    pub fn start(number: usize) -> Self {
        let hog = || {
            Command::new("sh")
                .args(["-c", "while :; do :; done"])
                .spawn()
                .unwrap()
        };
        Self(std::iter::repeat_with(hog).take(number).collect())
    }
}

impl Drop for Hogs {
    fn drop(&mut self) {
        for hog in &mut self.0 {
            let _ = hog.kill();
            let _ = hog.wait();
        }
    }
}
