//! Invalid settings prevent the start, with a message that names the place and the key.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::PermissionsExt;
use std::process::Output;

use crate::process::{TempDir, command};

const GOOD: &str = "issuer = 'https://id.example'\nsubscriber.client_id = 'guard'\n\
    subscriber.client_secret = 's'\n[[routes]]\nprefix = '/a'\naudience = 'a'\n";

fn check(text: &str, environment: &[(&str, &str)]) -> (i32, String) {
    let folder = TempDir::new();
    let file = folder.write_settings(text);
    let mut command = command();
    command.args(["--check", "--config"]).arg(file);
    let Output { status, stderr, .. } = command.envs(environment.iter().copied()).output().unwrap();
    (status.code().unwrap(), String::from_utf8(stderr).unwrap())
}

#[test]
fn valid_settings_pass_check() {
    assert_eq!(check(GOOD, &[]), (0, String::new()));
    let folder = TempDir::new();
    let (mut command, file) = (command(), folder.write_settings(GOOD));
    let output = command.args(["--check", "--config"]).arg(file).output();
    let stdout = String::from_utf8(output.unwrap().stdout).unwrap();
    let expected =
        "guard.toml is valid: 1 route, tokens of https://id.example, listening at 127.0.0.1:9180\n";
    assert!(stdout.ends_with(expected), "{stdout}");
    let example = include_str!("../../../../docs/examples/guard.toml");
    let environment = [("PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET", "s")];
    let example = example.replace("client_secret_file", "# client_secret_file");
    assert_eq!(check(&example, &environment), (0, String::new()));
}

/// The spelling of other programs is not read, and the guard says so. Variables that Kubernetes sets are not reported.
#[test]
fn misspelled_variables_are_warned_of() {
    let wrong = [
        ("PORTCULLIS_GUARD_SUBSCRIBER_CLIENT_ID", "other"),
        ("PORTCULLIS_GUARD_PORT", "tcp://10.0.0.1:80"),
    ];
    let (code, said) = check(GOOD, &wrong);
    assert_eq!(code, 0, "{said}");
    assert_eq!(
        said,
        "portcullis-guard: warning: PORTCULLIS_GUARD_SUBSCRIBER_CLIENT_ID is not read; \
         did you mean PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_ID?\n"
    );
}

#[test]
fn invalid_settings_are_reported_with_key_or_position() {
    for (old, new, expected) in [
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
        let text = GOOD.replacen(old, new, 1);
        assert_ne!(text, GOOD, "{old}");
        let (code, message) = check(&text, &[]);
        assert_eq!(code, 78, "{new}: {message}");
        assert!(message.contains(expected), "{new}: {message}");
    }
    let anywhere = GOOD.replacen(
        "issuer",
        "listen = '0.0.0.0:9180'\nlisten_anywhere = true\nissuer",
        1,
    );
    assert_eq!(check(&anywhere, &[]).0, 0);
}

#[test]
fn environment_overrides_file_and_rejects_unknown_keys() {
    let routes = "[[routes]]\nprefix = '/a'\naudience = 'a'\n";
    let complete = [
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
        // Kubernetes sets such a variable for a service of that name.
        ("PORTCULLIS_GUARD_PORT", "tcp://10.0.0.1:9180"),
    ];
    assert_eq!(check(routes, &complete), (0, String::new()));
    let not_utf8 = OsStr::from_bytes(b"\xff");
    let with = |variable: &OsStr| {
        let folder = TempDir::new();
        let file = folder.write_settings(GOOD);
        let mut command = command();
        command.args(["--check", "--config"]).arg(file);
        let Output { status, stderr, .. } = command.env(variable, not_utf8).output().unwrap();
        (status.code(), String::from_utf8(stderr).unwrap())
    };
    // Values that are not UTF-8 are rejected only in variables that the guard reads.
    for variable in ["RUST_LOG", "PORTCULLIS_GUARD__ISSUER"] {
        let (code, message) = with(OsStr::new(variable));
        assert_eq!(code, Some(78), "{message}");
        let expected = format!("environment: {variable}: its value is not UTF-8");
        assert!(message.contains(&expected), "{message}");
    }
    let (code, message) = with(OsStr::from_bytes(b"PORTCULLIS_GUARD__\xff"));
    assert_eq!(code, Some(78), "{message}");
    for variable in [&b"LANG"[..], b"\xfe", b"PORTCULLIS_GUARD_\xff"] {
        assert_eq!(with(OsStr::from_bytes(variable)), (Some(0), String::new()));
    }
    for (variable, value, expected) in [
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
        assert!(message.contains(expected), "{variable}: {message}");
    }
}

#[test]
fn secret_file_accessible_to_others_is_rejected() {
    let folder = TempDir::new();
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
    // Below the credentials directory of systemd the group may read the file, but have no other
    // access.
    let systemd = |directory: &str| {
        let credentials = ("CREDENTIALS_DIRECTORY", directory);
        check(&text, &[environment[0], credentials]).0
    };
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
    let elsewhere = TempDir::new();
    for directory in [elsewhere.path().to_str().unwrap(), "", ".", "/nowhere"] {
        assert_eq!(systemd(directory), 78, "{directory}");
    }
    let link = elsewhere.path().join("secret");
    std::os::unix::fs::symlink(&secret, &link).unwrap();
    let linked = [
        (environment[0].0, link.to_str().unwrap()),
        ("CREDENTIALS_DIRECTORY", elsewhere.path().to_str().unwrap()),
    ];
    assert_eq!(check(&text, &linked).0, 78);
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
fn world_accessible_settings_with_secret_are_rejected() {
    let folder = TempDir::new();
    let without_secret = GOOD.replace("subscriber.client_secret = 's'", "");
    let secret = ("PORTCULLIS_GUARD__SUBSCRIBER__CLIENT_SECRET", "s");
    for (text, mode, code) in [
        (GOOD, 0o644, 78),
        (GOOD, 0o602, 78),
        (GOOD, 0o640, 0),
        (GOOD, 0o600, 0),
        (without_secret.as_str(), 0o644, 0),
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
fn missing_settings_file_is_reported() {
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
fn plain_http_issuer_is_rejected() {
    let folder = TempDir::new();
    let text = GOOD.replace("https://id.example", "http://id.example");
    let text = format!("listen = '{}'\n{text}", crate::process::free_address());
    let file = folder.write_settings(&text);
    let Output { status, stderr, .. } = command().arg("--config").arg(file).output().unwrap();
    let stderr = String::from_utf8(stderr).unwrap();
    assert_eq!(status.code(), Some(78), "{stderr}");
    assert!(stderr.contains("neither an https URL"), "{stderr}");
}
