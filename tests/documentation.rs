//! The commands and configurations of the documentation, run as they are printed: every fenced block of `sh` and
//! `toml`, and every line that begins with `$ ` in other blocks. Only paths, ports and placeholders are replaced by
//! those of the test. `NOT_RUN` lists the blocks that this test cannot run, with the reason.
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used)]

#[path = "fixtures/mod.rs"]
mod fixtures;

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};

use fixtures::Browser;
use fixtures::installation::Installation;

/// A fenced block of a document.
struct Block {
    document: String,
    language: String,
    text: String,
}

impl Block {
    /// The first line, which names the block in messages.
    fn name(&self) -> String {
        format!(
            "{}: {}",
            self.document,
            self.text.lines().next().unwrap_or_default()
        )
    }

    /// Returns the commands: the whole block, or the lines of a transcript that were typed.
    fn commands(&self) -> Option<String> {
        let typed = |line: &str| line.strip_prefix("$ ").map(str::to_owned);
        match self.language.as_str() {
            "sh" => Some(self.text.clone()),
            "" => {
                let typed: Vec<String> = self.text.lines().filter_map(typed).collect();
                (!typed.is_empty()).then(|| typed.join("\n"))
            }
            _ => None,
        }
    }
}

/// The blocks that are not run here: the document, the first line of the block, and where or why not.
const NOT_RUN: [(&str, &str, &str); 12] = [
    (
        "README.md",
        "cargo demo",
        "builds the program; tests/browser runs the demo",
    ),
    (
        "README.md",
        "ISSUER=http://localhost:8080",
        "run by walkthrough_of_readme_runs_on_the_demo",
    ),
    (
        "README.md",
        "cargo build --release",
        "builds the program; tests/start.rs starts the server",
    ),
    (
        "CONTRIBUTING.md",
        "cargo demo",
        "builds the program and runs all tests",
    ),
    (
        "docs/guard.md",
        "cargo build --release",
        "builds the guard; crates/guard/tests runs it",
    ),
    (
        "docs/operations.md",
        "pg_dump --format=custom",
        "needs PostgreSQL; run by tests/faults/backup.rs",
    ),
    (
        "docs/operations.md",
        "systemctl stop portcullis\ncreatedb",
        "needs PostgreSQL; run by tests/faults/backup.rs",
    ),
    (
        "docs/protect-a-service.md",
        "export PORTCULLIS__ISSUER",
        "a server in the background; tests/interop/run starts one",
    ),
    (
        "docs/protect-a-service.md",
        "# Settings of portcullis-guard",
        "checked by crates/guard/tests/guard/settings.rs",
    ),
    (
        "docs/protect-a-service.md",
        "portcullis client create --id caller",
        "needs the proxies; run by tests/browser/run",
    ),
    (
        "docs/protect-a-service.md",
        "curl -i $PROXY/orders",
        "needs the proxies; crates/guard/tests/guard/proxies.rs runs them",
    ),
    (
        "docs/apply.md",
        "[[resources]]",
        "run with the commands of the same page, as clients.toml",
    ),
];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Returns the documents of the project that users and developers read.
fn documents() -> Vec<String> {
    let mut documents = vec!["README.md".to_owned(), "CONTRIBUTING.md".to_owned()];
    let mut pages: Vec<String> = std::fs::read_dir(root().join("docs"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .filter(|name| Path::new(name).extension().is_some_and(|end| end == "md"))
        .collect();
    pages.sort();
    documents.extend(pages.iter().map(|page| format!("docs/{page}")));
    documents
}

fn blocks(document: &str) -> Vec<Block> {
    let page = std::fs::read_to_string(root().join(document)).unwrap();
    let parts: Vec<&str> = page.split("\n```").collect();
    // Text inside and outside of fences alternates.
    let fenced = parts.iter().skip(1).step_by(2);
    fenced
        .map(|part| {
            let (language, text) = part.split_once('\n').unwrap_or((part, ""));
            Block {
                document: document.to_owned(),
                language: language.trim().to_owned(),
                text: text.to_owned(),
            }
        })
        .collect()
}

/// Returns the reason why a block is not run.
fn exception(block: &Block) -> Option<usize> {
    NOT_RUN.iter().position(|(document, start, _)| {
        block.document == *document && block.text.starts_with(start)
    })
}

/// A machine on which the commands of one document run: a database on which a server ran, the objects that the page
/// takes for granted, and the commands that belong to other machines.
struct Machine {
    desk: Installation,
}

impl Machine {
    fn new() -> Self {
        let desk = Installation::new();
        desk.serve(&[]).stop();
        let bin = desk.folder.join("bin");
        std::fs::create_dir(&bin).unwrap();
        std::fs::create_dir(desk.folder.join("backup")).unwrap();
        let program = |name: &str, text: &str| {
            let file = bin.join(name);
            std::fs::write(&file, text).unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o755)).unwrap();
        };
        let server = env!("CARGO_BIN_EXE_portcullis");
        program("portcullis", &format!("#!/bin/sh\nexec {server} \"$@\"\n"));
        // No server of this folder is running, so there is nothing to stop and to start.
        program("systemctl", "#!/bin/sh\nexit 0\n");
        Self { desk }
    }

    /// Creates the objects that a page takes for granted.
    fn prepare(&self, document: &str) {
        let orders = [
            "resource",
            "create",
            "--audience",
            "https://orders.example.com",
            "--name",
            "Orders",
        ];
        let scope = ["--scope", "orders:read=See your orders"];
        let alice = ["user", "create", "alice", "--generate-password"];
        match document {
            "docs/clients.md" | "docs/revocation.md" => {
                self.desk.done(&[&orders[..], &scope].concat());
                self.desk.done(&alice);
            }
            "docs/limits.md" | "docs/protect-a-service.md" => {
                self.desk.done(&alice);
            }
            "docs/apply.md" => {
                let page = blocks(document);
                let file = page.iter().find(|block| block.language == "toml").unwrap();
                self.desk.write("clients.toml", &file.text);
            }
            // The backup that is restored is made on the page.
            _ => {}
        }
    }

    /// Replaces paths of machines and placeholders by those of this one.
    fn localized(&self, text: &str) -> String {
        let folder = self.desk.folder.display().to_string();
        let json = |arguments: &[&str]| -> serde_json::Value {
            serde_json::from_str(&self.desk.done(&[arguments, &["--format", "json"]].concat()))
                .unwrap()
        };
        let mut text = text
            .replace("/etc/portcullis/", &format!("{folder}/"))
            .replace("/backup/", &format!("{folder}/backup/"));
        if text.contains("KID") {
            let kid = json(&["keys", "list"])[0]["kid"]
                .as_str()
                .unwrap()
                .to_owned();
            text = text.replace(" KID", &format!(" {kid}"));
        }
        if text.contains("42:AbC…") {
            let head = json(&["audit", "verify"])["head"]
                .as_str()
                .unwrap()
                .to_owned();
            text = text.replace("42:AbC…", &head);
        }
        if text.contains("user:SUB") {
            let sub = json(&["user", "get", "alice"])["sub"]
                .as_str()
                .unwrap()
                .to_owned();
            text = text.replace("user:SUB", &format!("user:{sub}"));
        }
        text
    }

    /// Runs commands in bash, on a terminal on which the operator confirms every question.
    fn run(&self, commands: &str) -> (bool, String) {
        self.desk.write(
            "commands.sh",
            &format!("set -eu\n{}\n", self.localized(commands)),
        );
        let ours = self.desk.command(&[], &[]);
        let path = format!(
            "{}/bin:/usr/local/bin:/usr/bin:/bin",
            self.desk.folder.display()
        );
        let mut terminal = std::process::Command::new("script")
            .args(["-qec", "bash commands.sh", "/dev/null"])
            .current_dir(&self.desk.folder)
            .env_clear()
            .envs(
                ours.get_envs()
                    .filter_map(|(name, value)| Some((name, value?))),
            )
            .env("PATH", path)
            .env("SHELL", "/bin/sh")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut keyboard = terminal.stdin.take().unwrap();
        // A command that asks nothing may have ended already.
        let _ = keyboard.write_all(b"y\ny\n");
        let mut shown = String::new();
        let _ = terminal.stdout.take().unwrap().read_to_string(&mut shown);
        drop(keyboard);
        (terminal.wait().unwrap().success(), shown)
    }

    /// Checks a configuration file of the server.
    fn check(&self, text: &str) -> (bool, String) {
        self.desk.write("checked.toml", &self.localized(text));
        let mut command = self
            .desk
            .command(&["--config", "checked.toml", "config", "check"], &[]);
        // The values of the page, not those of the tests.
        for variable in [
            "ISSUER",
            "LISTEN__PUBLIC",
            "LISTEN__MANAGEMENT",
            "SHUTDOWN__DELAY",
        ] {
            command.env_remove(format!("PORTCULLIS__{variable}"));
        }
        let output = command.output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        (output.status.success(), said)
    }
}

#[test]
fn commands_and_configurations_run_as_printed() {
    let mut used = BTreeSet::new();
    let mut count = 0;
    for document in documents() {
        let all = blocks(&document);
        let mut machine = None;
        for block in &all {
            if let Some(row) = exception(block) {
                used.insert(row);
                continue;
            }
            let is_toml = block.language == "toml";
            let commands = block.commands();
            if !is_toml && commands.is_none() {
                continue;
            }
            let machine = machine.get_or_insert_with(|| {
                let machine = Machine::new();
                machine.prepare(&document);
                machine
            });
            let (good, said) = match commands {
                Some(commands) => machine.run(&commands),
                None => machine.check(&block.text),
            };
            assert!(good, "{}\n{said}", block.name());
            count += 1;
        }
    }
    assert!(count > 15, "only {count}");
    // The list shrinks with the documents.
    let stale: Vec<_> = (0..NOT_RUN.len())
        .filter(|row| !used.contains(row))
        .map(|row| NOT_RUN[row])
        .collect();
    assert!(stale.is_empty(), "{stale:?}");
    for (_, _, reason) in NOT_RUN {
        let files = reason.split([' ', ';']).filter(|word| word.contains('/'));
        for file in files {
            assert!(root().join(file).exists(), "{file}");
        }
    }
}

/// A running demo, which is stopped at the end of the test.
struct Demo {
    child: Child,
    lines: Vec<String>,
    port: u16,
}

impl Demo {
    fn start(desk: &Installation) -> Self {
        let port = free_pair();
        let mut child = desk
            .command(&["demo", "--port", &port.to_string()], &[])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let shown = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut lines = Vec::new();
        for line in shown.map_while(Result::ok) {
            let is_last = line.contains("Ctrl-C stops the demo");
            lines.push(line);
            if is_last {
                break;
            }
        }
        Self { child, lines, port }
    }

    /// Returns the last word of the line that contains a label.
    fn value(&self, label: &str) -> String {
        let line = self.lines.iter().find(|line| line.contains(label));
        let line = line.unwrap_or_else(|| panic!("no {label} in {:?}", self.lines));
        line.split_whitespace().last().unwrap().to_owned()
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        let pid = self.child.id().to_string();
        let _ = std::process::Command::new("kill").arg(pid).status();
        let _ = self.child.wait();
    }
}

/// Returns a port on which, and on the next one, no process listens at the moment.
fn free_pair() -> u16 {
    loop {
        let one = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let port = one.local_addr().unwrap().port();
        if port < u16::MAX && std::net::TcpListener::bind(("127.0.0.1", port + 1)).is_ok() {
            return port;
        }
    }
}

/// The walkthrough of the README with curl against the demo. The test does what the reader does: it copies the
/// secret, signs in at the address that is printed, and copies the code from the redirect.
#[actix_web::test]
async fn walkthrough_of_readme_runs_on_the_demo() {
    let desk = Installation::new();
    let demo = Demo::start(&desk);
    let page = blocks("README.md");
    let block = page
        .iter()
        .find(|block| block.text.starts_with("ISSUER="))
        .unwrap();
    let (port, secret) = (demo.port, demo.value("client secret"));
    let text = block
        .text
        .replace("localhost:8080", &format!("localhost:{port}"))
        .replace("localhost:8081", &format!("localhost:{}", port + 1))
        .replace("SECRET=…", &format!("SECRET={secret}"))
        .replace("CODE=…", "read -r CODE");
    assert!(!text.contains('…'), "{text}");
    desk.write("walkthrough.sh", &format!("set -eu\n{text}"));
    let mut shell = std::process::Command::new("bash")
        .arg("walkthrough.sh")
        .current_dir(&desk.folder)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut shown = BufReader::new(shell.stdout.take().unwrap())
        .lines()
        .map_while(Result::ok);
    // The metadata is printed before it, without a line break.
    let url = shown.find_map(|line| Some(line[line.find("/oauth2/authorize?")?..].to_owned()));
    let base = format!("http://localhost:{port}");
    let mut browser = Browser::new(&base);
    browser.issuer.clone_from(&base);
    browser.host = format!("localhost:{port}");
    let login = browser.opens(&url.unwrap()).await;
    let consent = browser
        .fills_in(&login, "demo", &demo.value("Password"))
        .await;
    let answer = browser.decides(&consent, "allow").await;
    let code = answer.callback("code").unwrap();
    writeln!(shell.stdin.take().unwrap(), "{code}").unwrap();
    // A body need not end with a line break.
    let statuses: Vec<String> = shown
        .filter_map(|line| Some(line.split_once("HTTP/1.1 ")?.1[..3].to_owned()))
        .collect();
    assert!(shell.wait().unwrap().success());
    assert_eq!(statuses, ["200", "200", "401"]);
}

/// Every link from the README to a file of the repository resolves, and every page of `docs/` is linked from it.
#[test]
fn every_page_is_linked_from_the_readme() {
    let readme = std::fs::read_to_string(root().join("README.md")).unwrap();
    for document in documents().iter().filter(|name| name.starts_with("docs/")) {
        assert!(
            readme.contains(&format!("({document}")),
            "{document} is not linked"
        );
    }
    let licence: PathBuf = root().join("LICENSE");
    let licence = std::fs::read_to_string(licence).unwrap();
    assert!(licence.contains("Apache License") && licence.contains("Version 2.0, January 2004"));
    assert!(
        licence.contains("END OF TERMS AND CONDITIONS"),
        "the text is complete"
    );
}
