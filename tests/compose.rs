//! The compose file and the Dockerfile, tested without a container runtime. Each service's command runs with
//! its environment, as the real binary, against a real PostgreSQL server; only paths and ports are changed.
//! Other effects of a runtime are checked for consistency.
#![allow(dead_code, missing_docs, clippy::unwrap_used, clippy::expect_used)]

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use fixtures::postgres;
use serde_yaml_ng::Value;

#[path = "fixtures/mod.rs"]
mod fixtures;

const ROOT: &str = env!("CARGO_MANIFEST_DIR");
const BINARY: &str = env!("CARGO_BIN_EXE_portcullis");
/// The folder of the image that contains the volumes.
const HOME: &str = "/var/lib/portcullis";

/// A service of the compose file, with `$$` replaced by `$` as compose does.
#[derive(Debug)]
struct Service {
    name: String,
    value: Value,
}

impl Service {
    fn words(&self, key: &str) -> Vec<String> {
        strings(&self.value[key])
    }

    fn environment(&self) -> BTreeMap<String, String> {
        let Some(pairs) = self.value["environment"].as_mapping() else {
            return BTreeMap::new();
        };
        let text = |value: &Value| {
            value
                .as_str()
                .expect("quoted, so that every runtime reads the same")
                .to_owned()
        };
        pairs
            .iter()
            .map(|(name, value)| (text(name), text(value)))
            .collect()
    }

    /// Returns the volume and container path of each mount, and whether it is writable.
    fn mounts(&self) -> Vec<(String, String, bool)> {
        let mount = |text: &String| {
            let mut parts = text.split(':').map(str::to_owned);
            let (volume, place) = (parts.next().unwrap(), parts.next().unwrap());
            (volume, place, parts.next().is_none())
        };
        self.words("volumes").iter().map(mount).collect()
    }

    fn depends_on(&self) -> Vec<(String, String)> {
        let services = self.value["depends_on"].as_mapping().into_iter().flatten();
        services
            .map(|(name, how)| {
                (
                    name.as_str().unwrap().to_owned(),
                    how["condition"].as_str().unwrap().to_owned(),
                )
            })
            .collect()
    }

    fn is_ours(&self) -> bool {
        self.value["image"] == "portcullis:local"
    }
}

fn strings(list: &Value) -> Vec<String> {
    let text = |value: &Value| value.as_str().expect("a string").replace("$$", "$");
    list.as_sequence().into_iter().flatten().map(text).collect()
}

fn compose() -> (Value, Vec<Service>) {
    let text = std::fs::read_to_string(Path::new(ROOT).join("docker-compose.yml")).unwrap();
    let mut file: Value = serde_yaml_ng::from_str(&text).unwrap();
    file.apply_merge().unwrap();
    let services = file["services"].as_mapping().unwrap();
    let services = services
        .iter()
        .map(|(name, value)| Service {
            name: name.as_str().unwrap().to_owned(),
            value: value.clone(),
        })
        .collect();
    (file, services)
}

fn service<'a>(services: &'a [Service], name: &str) -> &'a Service {
    services
        .iter()
        .find(|service| service.name == name)
        .unwrap_or_else(|| panic!("no service {name}"))
}

/// A folder of this test, deleted at its end.
struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR"))
            .join(format!("compose-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The file system and the ports that a service sees, moved to a folder and to free ports.
struct Machine {
    home: Folder,
    moves: Vec<(String, String)>,
}

impl Machine {
    fn moved(&self, text: &str) -> String {
        self.moves
            .iter()
            .fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
    }

    /// Returns a service's command as its container runs it, with its environment only.
    fn command(&self, service: &Service) -> Command {
        let mut words = service.words("entrypoint");
        if words.is_empty() {
            words = dockerfile_words("ENTRYPOINT");
        }
        words.extend(service.words("command"));
        let mut command = Command::new(&words[0]);
        command.args(words[1..].iter().map(|word| self.moved(word)));
        self.contain(&mut command);
        command.envs(
            service
                .environment()
                .iter()
                .map(|(name, value)| (name, self.moved(value))),
        );
        command
    }

    fn contain(&self, command: &mut Command) {
        let path = format!(
            "{}:{}",
            Path::new(BINARY).parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        command
            .env_clear()
            .env("PATH", path)
            .current_dir(&self.home.0)
            .stdin(Stdio::null());
    }

    #[track_caller]
    fn succeeds(&self, service: &Service) -> Output {
        let output = self.command(service).output().unwrap();
        assert!(output.status.success(), "{}: {output:?}", service.name);
        output
    }

    fn file(&self, name: &str) -> PathBuf {
        self.home.0.join(name)
    }

    fn read(&self, name: &str) -> String {
        std::fs::read_to_string(self.file(name)).unwrap()
    }

    fn mode(&self, name: &str) -> u32 {
        std::fs::metadata(self.file(name))
            .unwrap()
            .permissions()
            .mode()
            & 0o777
    }
}

/// A server that is killed at the end of the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn free_port() -> u16 {
    TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap()
        .port()
}

/// Returns status and body of a plain GET, or `None` without a response.
fn get(port: u16, host: &str, path: &str) -> Option<(String, String)> {
    let mut stream = TcpStream::connect(("127.0.0.1", port)).ok()?;
    stream
        .set_read_timeout(Some(Duration::from_secs(10)))
        .ok()?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n"
    )
    .ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    let (head, body) = answer.split_once("\r\n\r\n")?;
    Some((head.lines().next()?.to_owned(), body.to_owned()))
}

fn dockerfile() -> Vec<String> {
    let text = std::fs::read_to_string(Path::new(ROOT).join("Dockerfile")).unwrap();
    text.replace("\\\n", " ")
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Returns the words of an instruction in JSON form.
fn dockerfile_words(instruction: &str) -> Vec<String> {
    let line = dockerfile()
        .into_iter()
        .find_map(|line| Some(line.strip_prefix(instruction)?.trim().to_owned()));
    serde_json::from_str(&line.unwrap()).unwrap()
}

/// Returns what the build stage copies from the repository.
fn copied() -> Vec<String> {
    let lines = dockerfile();
    let copies = lines
        .iter()
        .filter_map(|line| line.strip_prefix("COPY "))
        .filter(|rest| !rest.starts_with("--from"));
    copies
        .flat_map(|rest| {
            rest.split_whitespace()
                .rev()
                .skip(1)
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect()
}

#[test]
fn compose_starts_services_in_order() {
    let (_, services) = compose();
    let (public, management) = (free_port(), free_port());
    let home = Folder::new("home");
    for place in ["kek", "database", "password"] {
        std::fs::create_dir(home.0.join(place)).unwrap();
    }
    let moves = vec![
        (HOME.to_owned(), home.0.display().to_string()),
        ("0.0.0.0:8080".to_owned(), format!("127.0.0.1:{public}")),
        (
            "/127.0.0.1/9000".to_owned(),
            format!("/127.0.0.1/{management}"),
        ),
    ];
    let machine = Machine { home, moves };

    // 1. The password and the key are created once, in files that only their owner can read.
    let prepare = service(&services, "prepare");
    let output = machine.succeeds(prepare);
    let (url, password, kek) = (
        machine.read("database/url"),
        machine.read("password/password"),
        machine.read("kek/kek"),
    );
    assert_eq!(
        url,
        format!("postgres://portcullis:{password}@database/portcullis")
    );
    assert!(
        password.len() == 64 && password.bytes().all(|byte| byte.is_ascii_hexdigit()),
        "{} characters",
        password.len()
    );
    assert_eq!(
        (machine.mode("database/url"), machine.mode("kek/kek")),
        (0o600, 0o600)
    );
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(
        !said.contains(&password) && !said.contains(kek.trim()),
        "a secret was printed"
    );
    machine.succeeds(prepare);
    assert_eq!(
        (url, kek),
        (machine.read("database/url"), machine.read("kek/kek")),
        "a second start changed them"
    );

    // 2. The database is a real one, at another address.
    let name = format!("compose_{}", std::process::id());
    let url = postgres::empty_database(&name);
    std::fs::write(machine.file("database/url"), url).unwrap();

    // 3. Before the migration the server exits, and its error says what to do.
    let server = service(&services, "portcullis");
    let refused = machine.command(server).output().unwrap();
    assert_eq!(refused.status.code(), Some(78));
    assert!(
        String::from_utf8_lossy(&refused.stderr).contains("migrate up"),
        "{refused:?}"
    );
    let migrated = machine.succeeds(service(&services, "migrate"));
    assert!(
        !String::from_utf8_lossy(&migrated.stdout).starts_with('0'),
        "{migrated:?}"
    );

    // 4. The server starts, its health check succeeds, and it is the issuer of the file.
    let log = std::fs::File::create(machine.file("log")).unwrap();
    let mut command = machine.command(server);
    command
        .env(
            "PORTCULLIS__LISTEN__MANAGEMENT",
            format!("127.0.0.1:{management}"),
        )
        .stdout(Stdio::null())
        .stderr(log);
    let mut running = Running(command.spawn().unwrap());
    let check = strings(&server.value["healthcheck"]["test"]);
    assert_eq!(check[0], "CMD");
    let healthy = || {
        let mut probe = Command::new(&check[1]);
        probe
            .args(check[2..].iter().map(|word| machine.moved(word)))
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        machine.contain(&mut probe);
        probe
            .envs(
                server
                    .environment()
                    .iter()
                    .map(|(name, value)| (name, machine.moved(value))),
            )
            .env(
                "PORTCULLIS__LISTEN__MANAGEMENT",
                format!("127.0.0.1:{management}"),
            );
        probe.status().unwrap().success()
    };
    let started = Instant::now();
    while !healthy() {
        assert!(
            started.elapsed() < Duration::from_secs(30),
            "{}",
            machine.read("log")
        );
    }
    assert!(
        running.0.try_wait().unwrap().is_none(),
        "{}",
        machine.read("log")
    );
    let (status, body) = get(
        public,
        "localhost:8080",
        "/.well-known/openid-configuration",
    )
    .unwrap();
    assert!(status.contains(" 200 "), "{status}");
    let metadata: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(
        metadata["issuer"],
        server.environment()["PORTCULLIS__ISSUER"].as_str()
    );

    // 5. The documented commands work beside it, in the same container.
    let mut create = Command::new("portcullis");
    create.args([
        "client",
        "create",
        "--name",
        "My app",
        "--redirect-uri",
        "http://127.0.0.1/callback",
        "--format",
        "json",
    ]);
    machine.contain(&mut create);
    create.envs(
        server
            .environment()
            .iter()
            .map(|(name, value)| (name, machine.moved(value))),
    );
    let created = create.output().unwrap();
    assert!(created.status.success(), "{created:?}");

    // 6. Once it is stopped, the health check fails.
    drop(running);
    assert!(!healthy());
    postgres::execute(&format!("DROP DATABASE {name}"));
}

#[test]
fn compose_publishes_no_ports_and_contains_no_secrets() {
    let (file, services) = compose();
    let text = std::fs::read_to_string(Path::new(ROOT).join("docker-compose.yml")).unwrap();
    assert!(
        !text.replace("$$", "").contains('$'),
        "it must work without a variable"
    );
    let server = service(&services, "portcullis");
    for service in &services {
        for port in service.words("ports") {
            assert!(port.starts_with("127.0.0.1:"), "{}: {port}", service.name);
        }
        if service.name != server.name {
            assert!(
                service.words("ports").is_empty(),
                "{} publishes ports",
                service.name
            );
        }
        assert_eq!(service.value["read_only"], true, "{}", service.name);
        assert_eq!(service.words("cap_drop"), ["ALL"], "{}", service.name);
        assert_eq!(
            service.words("security_opt"),
            ["no-new-privileges:true"],
            "{}",
            service.name
        );
        assert_ne!(service.value["privileged"], true, "{}", service.name);
        let user = service.value["user"].as_str().unwrap_or("root");
        assert_eq!(
            user,
            if service.is_ours() {
                "10001:10001"
            } else {
                "postgres"
            },
            "{}",
            service.name
        );
        for (name, value) in service.environment() {
            let secret = ["PASSWORD", "SECRET", "KEK", "URL"]
                .iter()
                .any(|word| name.contains(word));
            let elsewhere = name.contains("FILE") || value.starts_with("file:");
            assert!(
                !secret || elsewhere,
                "{}: {name} holds a secret",
                service.name
            );
        }
    }
    // The database is on a network without other services.
    assert_eq!(
        service(&services, "database").words("networks"),
        ["database"]
    );
    assert_eq!(file["networks"]["database"]["internal"], true);
    // The issuer, the listener and the published port use the same port.
    let environment = server.environment();
    assert_eq!(server.words("ports"), ["127.0.0.1:8080:8080"]);
    assert_eq!(environment["PORTCULLIS__ISSUER"], "http://localhost:8080");
    assert_eq!(environment["PORTCULLIS__LISTEN__PUBLIC"], "0.0.0.0:8080");
}

#[test]
fn compose_volumes_networks_and_order_are_consistent() {
    let (file, services) = compose();
    let declared = |section: &str| -> BTreeSet<String> {
        file[section]
            .as_mapping()
            .unwrap()
            .keys()
            .map(|name| name.as_str().unwrap().to_owned())
            .collect()
    };
    let mounted: BTreeSet<String> = services
        .iter()
        .flat_map(Service::mounts)
        .map(|(volume, ..)| volume)
        .collect();
    assert_eq!(mounted, declared("volumes"));
    let joined: BTreeSet<String> = services
        .iter()
        .flat_map(|service| service.words("networks"))
        .collect();
    assert_eq!(joined, declared("networks"));

    let made = dockerfile()
        .iter()
        .filter(|line| line.contains("install -d"))
        .flat_map(|line| {
            line.split_whitespace()
                .map(str::to_owned)
                .collect::<Vec<_>>()
        })
        .collect::<BTreeSet<_>>();
    for service in &services {
        for (name, _) in service.depends_on() {
            assert!(
                services.iter().any(|other| other.name == name),
                "{} waits for {name}",
                service.name
            );
        }
        if !service.is_ours() {
            continue;
        }
        // Each mount covers a folder of the image, so that a new volume takes its owner and mode.
        let mounts = service.mounts();
        for (_, place, _) in &mounts {
            assert!(
                made.contains(place),
                "{}: the image has no {place}",
                service.name
            );
        }
        // Each path in the environment is on a volume of this service.
        for (name, value) in service.environment() {
            if let Some(path) = value
                .strip_prefix("file:")
                .or(Some(&value))
                .filter(|value| value.starts_with('/'))
            {
                assert!(
                    mounts
                        .iter()
                        .any(|(_, place, _)| path.starts_with(&format!("{place}/"))),
                    "{}: {name} is on no volume",
                    service.name
                );
            }
        }
    }
    // One service writes each secret, and the others only read it.
    for volume in ["kek", "database-url", "database-password"] {
        let writers: Vec<&str> = services
            .iter()
            .filter(|service| {
                service
                    .mounts()
                    .iter()
                    .any(|(name, _, write)| name == volume && *write)
            })
            .map(|service| service.name.as_str())
            .collect();
        assert_eq!(writers, ["prepare"], "{volume}");
    }
    let sees = |name: &str, volume: &str| {
        service(&services, name)
            .mounts()
            .iter()
            .any(|(mounted, ..)| mounted == volume)
    };
    assert!(
        !sees("database", "kek") && !sees("database", "database-url") && !sees("migrate", "kek")
    );
    assert!(!sees("portcullis", "database-password"));
    // The host in the database URL is a service on a common network, and the password file is that of
    // `prepare`.
    let database = service(&services, "database").environment();
    assert_eq!(
        database["POSTGRES_PASSWORD_FILE"],
        "/run/database-password/password"
    );
    assert_eq!(
        (&*database["POSTGRES_USER"], &*database["POSTGRES_DB"]),
        ("portcullis", "portcullis")
    );
    for name in ["migrate", "portcullis"] {
        assert!(
            service(&services, name)
                .words("networks")
                .contains(&"database".to_owned())
        );
    }
    let waits = |name: &str| service(&services, name).depends_on();
    let pair = |name: &str, how: &str| (name.to_owned(), how.to_owned());
    assert!(waits("database").contains(&pair("prepare", "service_completed_successfully")));
    assert!(waits("migrate").contains(&pair("database", "service_healthy")));
    assert!(waits("portcullis").contains(&pair("migrate", "service_completed_successfully")));
}

#[test]
fn dockerfile_copies_only_existing_paths() {
    let copied = copied();
    let kept: Vec<String> = std::fs::read_to_string(Path::new(ROOT).join(".dockerignore"))
        .unwrap()
        .lines()
        .filter_map(|line| line.strip_prefix('!'))
        .map(str::to_owned)
        .collect();
    let context = Folder::new("context");
    for source in &copied {
        let source = source.trim_start_matches("./");
        assert!(
            Path::new(ROOT).join(source).exists(),
            "COPY {source}: it does not exist"
        );
        assert!(
            kept.iter().any(|kept| kept == source),
            "COPY {source}: .dockerignore leaves it out"
        );
        let done = Command::new("cp")
            .arg("-r")
            .arg(Path::new(ROOT).join(source))
            .arg(&context.0)
            .status()
            .unwrap();
        assert!(done.success());
    }
    // Cargo finds every target of the manifest, with the locked versions.
    let mut metadata = Command::new(env!("CARGO"));
    metadata
        .args([
            "metadata",
            "--locked",
            "--offline",
            "--no-deps",
            "--format-version=1",
        ])
        .current_dir(&context.0);
    let output = metadata.output().unwrap();
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    // Every file that the sources include at compile time is copied as well.
    let taken_in = taken_in(&context.0.join("src"), &context.0);
    for known in [
        "migrations/sqlite",
        "templates/login.html",
        "portcullis.css",
    ] {
        let finds = taken_in.iter().any(|(_, taken)| taken.ends_with(known));
        assert!(finds, "{known} is taken in, and the search does not see it");
    }
    for (source, taken) in taken_in {
        assert!(
            taken.exists(),
            "{} takes in {}, which is not copied",
            source.display(),
            taken.display()
        );
    }
    // The account in the compose file is that of the image.
    assert!(dockerfile().iter().any(|line| line == "USER 10001:10001"));
    assert!(dockerfile().iter().any(|line| line.contains("--uid 10001")));
    assert_eq!(dockerfile_words("ENTRYPOINT"), ["portcullis"]);
}

/// Returns each source file below `folder` with the files in `root` that it includes at compile time.
fn taken_in(folder: &Path, root: &Path) -> Vec<(PathBuf, PathBuf)> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(taken_in(&path, root));
            continue;
        }
        let text = std::fs::read_to_string(&path).unwrap();
        for (before, base) in [
            ("include_str!(\"", folder.to_owned()),
            ("include_bytes!(\"", folder.to_owned()),
            ("embed_migrations!(\"", root.to_owned()),
            ("template(path = \"", root.join("templates")),
        ] {
            for rest in text.split(before).skip(1) {
                let name = rest.split('"').next().unwrap();
                found.push((path.clone(), base.join(name)));
            }
        }
    }
    found
}
