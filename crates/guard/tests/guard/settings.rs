//! Settings that are wrong refuse the start, and say where.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::process::{Folder, command};

const GOOD: &str = "issuer = 'https://id.example'\nsubscriber.client_id = 'guard'\n\
    subscriber.client_secret = 's'\n[[routes]]\nprefix = '/a'\naudience = 'a'\n";

fn check(text: &str, environment: &[(&str, &str)]) -> (i32, String) {
    let folder = Folder::new();
    let file = folder.write_settings(text);
    let mut command = command();
    command.args(["--check", "--config"]).arg(file);
    let Output { status, stderr, .. } = command.envs(environment.iter().copied()).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn good_settings_pass() {
    assert_eq!(check(GOOD, &[]), (0, String::new()));
    let folder = Folder::new();
    let (mut command, file) = (command(), folder.write_settings(GOOD));
    let told = command.args(["--check", "--config"]).arg(file).output();
    let told = String::from_utf8(told.unwrap().stdout).unwrap();
    let right =
        "guard.toml is valid: 1 route, tokens of https://id.example, listening at 127.0.0.1:9180\n";
    assert!(told.ends_with(right), "{told}");
    let example = include_str!("../../../../docs/examples/guard.toml");
    let environment = [("PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET", "s")];
    let example = example.replace("client_secret_file", "# client_secret_file");
    assert_eq!(check(&example, &environment), (0, String::new()));
}

#[test]
fn each_mistake_is_named_with_its_place() {
    for (found, instead, named) in [
        ("issuer", "isuer", "unknown field `isuer`"),
        ("issuer = ", "# ", "issuer is missing"),
        ("https://id", "http://id", "\"http://id.example/"),
        (
            "subscriber.client_id",
            "subscriber.feed = ['ftp://id.example']\nsubscriber.client_id",
            "\"ftp://id.example\" is neither an https URL",
        ),
        (
            "subscriber.client_id",
            "# ",
            "subscriber.client_id is missing",
        ),
        (
            "subscriber.client_secret",
            "# ",
            "subscriber.client_secret is missing",
        ),
        (
            "subscriber.client_secret",
            "subscriber.secret",
            "unknown field `secret`",
        ),
        (
            "issuer",
            "listen = '0.0.0.0:9180'\nissuer",
            "other hosts can reach 0.0.0.0:9180",
        ),
        (
            "issuer",
            "listen = 'guard'\nissuer",
            "invalid address `guard`",
        ),
        (
            "issuer",
            "log.level = 'loud,x=y'\nissuer",
            "invalid log level",
        ),
        (
            "issuer",
            "log.format = 'xml'\nissuer",
            "unknown variant `xml`",
        ),
        (
            "prefix = '/a'",
            "prefix = '/a/../b'",
            "invalid path prefix `/a/../b`",
        ),
        ("audience = 'a'", "", "missing field `audience`"),
        (
            "audience = 'a'",
            "audience = ''",
            "the audience must not be empty",
        ),
        (
            "audience = 'a'",
            "audience = 'a'\nscope = 'x'",
            "line 7, column 1",
        ),
        (
            "[[routes]]\nprefix = '/a'\naudience = 'a'",
            "",
            "routes is missing",
        ),
    ] {
        let text = GOOD.replacen(found, instead, 1);
        assert_ne!(text, GOOD, "{found}");
        let (code, message) = check(&text, &[]);
        assert_eq!(code, 78, "{instead}: {message}");
        assert!(message.contains(named), "{instead}: {message}");
    }
    let anywhere = GOOD.replacen(
        "issuer",
        "listen = '0.0.0.0:9180'\nlisten_anywhere = true\nissuer",
        1,
    );
    assert_eq!(check(&anywhere, &[]).0, 0);
}

#[test]
fn the_environment_wins_and_has_no_unknown_keys() {
    let bare = "[[routes]]\nprefix = '/a'\naudience = 'a'\n";
    let whole = [
        ("PORTCULLIS_GUARD__ISSUER", "https://id.example"),
        ("PORTCULLIS_GUARD__LISTEN", "unix:/run/guard.sock"),
        ("PORTCULLIS_GUARD__LOG__LEVEL", "debug"),
        ("PORTCULLIS_GUARD__LOG__FORMAT", "json"),
        ("PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_ID", "guard"),
        ("PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET", "s"),
        (
            "PORTCULLIS_GUARD__SUBSCRIBER__FEED",
            "https://a.example, https://b.example",
        ),
        ("PORTCULLIS_GUARD__SUBSCRIBER__INTROSPECTION", "true"),
        ("PORTCULLIS_GUARD__SUBSCRIBER__INSTANCE", "one"),
        // Kubernetes says such things of a service of that name.
        ("PORTCULLIS_GUARD_PORT", "tcp://10.0.0.1:9180"),
    ];
    assert_eq!(check(bare, &whole), (0, String::new()));
    let bytes = OsStr::from_bytes(b"\xff");
    let with = |variable: &OsStr| {
        let folder = Folder::new();
        let file = folder.write_settings(GOOD);
        let mut command = command();
        command.args(["--check", "--config"]).arg(file);
        let Output { status, stderr, .. } = command.env(variable, bytes).output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    // What is no text is refused where it is ours.
    for variable in ["RUST_LOG", "PORTCULLIS_GUARD__ISSUER"] {
        let (code, message) = with(OsStr::new(variable));
        assert_eq!(code, Some(78), "{message}");
        let named = format!("environment: {variable}: its value is not UTF-8");
        assert!(message.contains(&named), "{message}");
    }
    let (code, message) = with(OsStr::from_bytes(b"PORTCULLIS_GUARD__\xff"));
    assert_eq!(code, Some(78), "{message}");
    for variable in [&b"LANG"[..], b"\xfe", b"PORTCULLIS_GUARD_\xff"] {
        assert_eq!(with(OsStr::from_bytes(variable)), (Some(0), String::new()));
    }
    for (variable, value, named) in [
        (
            "PORTCULLIS_GUARD__ISUER",
            "x",
            "PORTCULLIS_GUARD__ISUER: unknown key",
        ),
        (
            "PORTCULLIS_GUARD__ROUTES",
            "x",
            "routes can be set in the file only",
        ),
        (
            "PORTCULLIS_GUARD__LISTEN",
            "0.0.0.0:1",
            "other hosts can reach 0.0.0.0:1",
        ),
        (
            "PORTCULLIS_GUARD__LISTEN_ANYWHERE",
            "yes",
            "expected true or false, got `yes`",
        ),
        (
            "PORTCULLIS_GUARD__LOG__LEVEL",
            "loud=loud",
            "invalid log level",
        ),
        ("RUST_LOG", "loud=loud", "RUST_LOG"),
    ] {
        let (code, message) = check(GOOD, &[(variable, value)]);
        assert_eq!(code, 78, "{variable}: {message}");
        assert!(message.contains(named), "{variable}: {message}");
    }
}

#[test]
fn a_secret_file_is_for_its_owner_alone() {
    let folder = Folder::new();
    let secret = folder.write("secret", "pcl_sec_x\n");
    let path = secret.to_str().unwrap();
    let environment = [("PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET_FILE", path)];
    let text = GOOD.replace("subscriber.client_secret = 's'", "");
    let chmod = |mode| {
        std::fs::set_permissions(&secret, std::fs::Permissions::from_mode(mode)).unwrap();
    };
    chmod(0o644);
    let (code, message) = check(&text, &environment);
    assert_eq!(code, 78);
    assert!(
        message.contains("is accessible to other users (mode 644)"),
        "{message}"
    );
    chmod(0o440);
    assert_eq!(check(&text, &environment).0, 78);
    // As systemd has it: below its folder a group may read, and no more.
    let systemd = |place: &str| check(&text, &[environment[0], ("CREDENTIALS_DIRECTORY", place)]).0;
    let credentials = folder.path().to_str().unwrap();
    for (mode, code) in [
        (0o440, 0),
        (0o400, 0),
        (0o460, 78),
        (0o444, 78),
        (0o450, 78),
    ] {
        chmod(mode);
        assert_eq!(systemd(credentials), code, "{mode:o}");
    }
    chmod(0o440);
    let elsewhere = Folder::new();
    for place in [elsewhere.path().to_str().unwrap(), "", ".", "/nowhere"] {
        assert_eq!(systemd(place), 78, "{place}");
    }
    let link = elsewhere.path().join("secret");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let through = [
        (environment[0].0, link.to_str().unwrap()),
        ("CREDENTIALS_DIRECTORY", elsewhere.path().to_str().unwrap()),
    ];
    assert_eq!(check(&text, &through).0, 78);
    chmod(0o600);
    assert_eq!(check(&text, &environment).0, 0);
    let (_, message) = check(GOOD, &environment);
    assert!(
        message.contains("cannot be combined with client_secret"),
        "{message}"
    );
    let (_, message) = check(
        &text,
        &[(
            "PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET_FILE",
            "/nowhere",
        )],
    );
    assert!(message.contains("/nowhere: No such file"), "{message}");
}

#[test]
fn settings_with_a_secret_are_not_for_everybody() {
    let folder = Folder::new();
    let bare = GOOD.replace("subscriber.client_secret = 's'", "");
    let secret = ("PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET", "s");
    for (text, mode, code) in [
        (GOOD, 0o644, 78),
        (GOOD, 0o602, 78),
        (GOOD, 0o640, 0),
        (GOOD, 0o600, 0),
        (bare.as_str(), 0o644, 0),
    ] {
        let file = folder.write("guard.toml", text);
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
        let mut command = command();
        command.args(["--check", "--config"]).arg(file);
        if text != GOOD {
            command.env(secret.0, secret.1);
        }
        let Output { status, stderr, .. } = command.output().unwrap();
        let message = String::from_utf8(stderr).unwrap();
        assert_eq!(status.code(), Some(code), "{mode:o}: {message}");
        assert_eq!(
            message.contains("client_secret_file"),
            code == 78,
            "{message}"
        );
    }
}

#[test]
fn a_file_that_is_not_there_is_named() {
    let Output { status, stderr, .. } = command()
        .args(["--config", "/nowhere.toml"])
        .output()
        .unwrap();
    assert_eq!(status.code(), Some(78));
    assert!(String::from_utf8(stderr).unwrap().contains("/nowhere.toml"));
    let Output { status, .. } = command().arg("--no-such-flag").output().unwrap();
    assert_eq!(status.code(), Some(2));
}

#[test]
fn an_issuer_without_tls_is_refused() {
    let folder = Folder::new();
    let text = GOOD.replace("https://id.example", "http://id.example");
    let text = format!("listen = '{}'\n{text}", crate::process::free_address());
    let file = folder.write_settings(&text);
    let Output { status, stderr, .. } = command().arg("--config").arg(file).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("neither an https URL"), "{stderr}");
}
