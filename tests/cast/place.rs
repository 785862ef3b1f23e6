//! A folder with its own database and KEK, in which the real binary runs.

use std::io::{BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use super::look::Look;
use super::postgres;

/// An empty folder of this process. Process numbers come back, and a target folder outlives them:
/// whatever another process of the same number has left goes first.
pub fn empty_folder(name: &str) -> PathBuf {
    let folder =
        Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{name}-{}", std::process::id()));
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    folder
}

/// The folder, and what every command in it is told.
pub struct Place {
    pub folder: PathBuf,
    pub database: Option<String>,
    /// What every command is told besides.
    pub told: Vec<(&'static str, String)>,
}

impl Place {
    /// On an embedded database that does not exist yet.
    pub fn new() -> Self {
        static NUMBER: AtomicUsize = AtomicUsize::new(0);
        let number = NUMBER.fetch_add(1, Ordering::SeqCst);
        Self {
            folder: empty_folder(&format!("place-{number}")),
            database: None,
            told: Vec::new(),
        }
    }

    /// On a Postgres database of its own: migrated, with a KEK.
    pub fn on_postgres() -> Self {
        let mut place = Self::new();
        let name = place
            .folder
            .file_name()
            .unwrap()
            .to_str()
            .unwrap()
            .replace('-', "_");
        place.database = Some(postgres::empty_database(&name));
        place.done(&["migrate", "up"]);
        place.done(&["keys", "generate-kek", "--out", "keys/kek"]);
        place
    }

    pub fn command(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_portcullis"));
        command
            .args(arguments)
            .current_dir(&self.folder)
            .env_clear()
            .stdin(Stdio::null())
            .env("PORTCULLIS__LISTEN__PUBLIC", "localhost:0")
            .env("PORTCULLIS__ISSUER", "http://localhost:8080")
            .env("PORTCULLIS__LISTEN__MANAGEMENT", "127.0.0.1:0")
            // Nothing stands in front of it.
            .env("PORTCULLIS__SHUTDOWN__DELAY", "0s");
        if let Some(url) = &self.database {
            command.env("PORTCULLIS__DATABASE__URL", url);
        }
        command.envs(self.told.iter().map(|(name, value)| (name, value)));
        command.envs(variables.iter().copied());
        command
    }

    pub fn run(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Output {
        self.command(arguments, variables).output().unwrap()
    }

    /// Runs a command that must work, and returns what it printed.
    #[track_caller]
    pub fn done(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments, &[]);
        assert!(
            output.status.success(),
            "{arguments:?}: {}{}",
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The same with a text on stdin.
    #[track_caller]
    pub fn told(&self, arguments: &[&str], text: &str) -> String {
        let mut child = self
            .command(arguments, &[])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child
            .stdin
            .take()
            .unwrap()
            .write_all(text.as_bytes())
            .unwrap();
        let mut printed = String::new();
        child
            .stdout
            .take()
            .unwrap()
            .read_to_string(&mut printed)
            .unwrap();
        assert!(child.wait().unwrap().success(), "{arguments:?}");
        printed
    }

    /// A server that has said that it is started.
    pub fn serve(&self, variables: &[(&str, &str)]) -> Running {
        self.serve_with(&["serve"], variables)
    }

    /// The same by a command line of its own.
    pub fn serve_with(&self, arguments: &[&str], variables: &[(&str, &str)]) -> Running {
        self.starts(self.command(arguments, variables))
    }

    /// The same by a command of its own.
    pub fn starts(&self, mut command: Command) -> Running {
        let mut child = command.stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let said = Arc::new(Mutex::new(Vec::new()));
        let mut started = false;
        for line in lines.by_ref().map_while(Result::ok) {
            started = line.contains("server.started");
            said.lock().unwrap().push(line);
            if started {
                break;
            }
        }
        assert!(started, "no start: {:?}", said.lock().unwrap());
        let ear = Arc::clone(&said);
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                ear.lock().unwrap().push(line);
            }
        });
        Running { child, said }
    }

    /// Writes a file below the folder.
    pub fn write(&self, name: &str, text: &str) {
        std::fs::write(self.folder.join(name), text).unwrap();
    }

    /// Reads a file below the folder.
    pub fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.folder.join(name)).unwrap()
    }

    /// A connection of the test's own.
    #[track_caller]
    pub fn look(&self) -> Look {
        match &self.database {
            Some(url) => Look::at(url),
            None => Look::at_file(&self.folder.join("data/portcullis.db")),
        }
    }

    /// How many rows a query counts: `SELECT count(*) AS n FROM …`.
    #[track_caller]
    pub fn count(&self, query: &str) -> i64 {
        self.look().count(query)
    }

    /// Runs a statement behind everybody's back.
    #[track_caller]
    pub fn execute(&self, statement: &str) {
        self.look().execute(statement);
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        if let Some(url) = &self.database {
            postgres::drop_database(url);
        }
    }
}

/// A server; it ends with the test.
pub struct Running {
    pub child: Child,
    said: Arc<Mutex<Vec<String>>>,
}

impl Running {
    /// What it has logged so far.
    pub fn log(&self) -> Vec<String> {
        self.said.lock().unwrap().clone()
    }

    /// A field of its `server.started` line.
    pub fn started(&self, field: &str) -> String {
        let log = self.log();
        let line = log
            .iter()
            .find(|line| line.contains("server.started"))
            .unwrap();
        let line: serde_json::Value = serde_json::from_str(line).unwrap();
        line[field].as_str().unwrap().to_owned()
    }

    /// Waits until it has logged what `wanted` finds, at most ten seconds.
    #[track_caller]
    pub fn waits_for(&self, wanted: impl Fn(&str) -> bool) -> String {
        let begun = std::time::Instant::now();
        loop {
            if let Some(line) = self.log().into_iter().find(|line| wanted(line)) {
                return line;
            }
            assert!(
                begun.elapsed() < std::time::Duration::from_secs(10),
                "not logged: {:#?}",
                self.log()
            );
            std::thread::yield_now();
        }
    }

    pub fn signal(&self, name: &str) {
        let pid = self.child.id().to_string();
        let sent = Command::new("kill").args([name, &pid]).status().unwrap();
        assert!(sent.success());
    }

    /// Stops it in the ordinary way and returns its exit code.
    pub fn stop(self) -> Option<i32> {
        self.signal("-TERM");
        self.ends()
    }

    /// Its exit code, when it ends.
    pub fn ends(mut self) -> Option<i32> {
        self.child.wait().unwrap().code()
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A refusal: exit code, and one sentence as the last line.
#[track_caller]
pub fn refused(output: &Output, code: i32, sentence: &str) {
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(code), "{said}");
    let last = said.lines().last().unwrap_or_default();
    assert!(
        last.starts_with("portcullis: ") && last.contains(sentence),
        "{said}"
    );
}
