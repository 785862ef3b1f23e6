//! The sources of the values, and the rejection of unknown keys.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use ::config::{Environment, File, FileFormat, Source, Value, ValueKind};
use portcullis_runtime::misspelled_key;

use super::secret_file::{is_read_by_all, read_secret_file};
use super::{Config, ConfigError};

/// The file that is used without `--config`, if it exists.
const DEFAULT_FILE: &str = "/etc/portcullis/config.toml";

/// Values of the command line, which override all other sources.
#[derive(Clone, Debug, Default)]
pub struct Overrides {
    /// `--config FILE`, repeatable.
    pub files: Vec<PathBuf>,
    /// `key → value`, such as `listen.public` → `localhost:9999`.
    pub values: Vec<(&'static str, String)>,
}

/// Keys whose value in the environment is a comma-separated list.
const LISTS: [&str; 7] = [
    "keys.kek",
    "keys.algorithms",
    "http.trusted_proxies",
    "http.accept_hosts",
    "http.allow",
    "http.deny",
    "admin.allow",
];

/// Other names of keys in the environment. The prefixed name takes precedence.
const ALIASES: [(&str, &str); 5] = [
    ("DATABASE_URL", "database.url"),
    ("RUST_LOG", "log.level"),
    ("OTEL_EXPORTER_OTLP_ENDPOINT", "telemetry.endpoint"),
    ("OTEL_SERVICE_NAME", "telemetry.service_name"),
    ("PORT", "listen.public"),
];

/// Prefix of this program's variables. It ends with a double underscore because Kubernetes sets variables such
/// as PORTCULLIS_PORT for a service of that name.
const PREFIX: &str = "PORTCULLIS__";

/// The source of each key that is set.
pub(super) type Origins = BTreeMap<String, String>;

/// Returns the environment of this process. Ignores non-UTF-8 variables that do not have our prefix.
///
/// # Errors
/// The name of a variable of this program that is not UTF-8.
pub fn environment() -> Result<Vec<(String, String)>, ConfigError> {
    texts(std::env::vars_os())
}

fn texts(
    variables: impl IntoIterator<Item = (OsString, OsString)>,
) -> Result<Vec<(String, String)>, ConfigError> {
    let mut texts = Vec::new();
    for (name, value) in variables {
        let shown = name.to_string_lossy().into_owned();
        let is_ours = shown.starts_with(PREFIX) || ALIASES.iter().any(|(alias, _)| *alias == shown);
        match (name.into_string(), value.into_string()) {
            (Ok(name), Ok(value)) => texts.push((name, value)),
            _ if is_ours => {
                return Err(ConfigError(format!(
                    "configuration environment {shown}: is not UTF-8"
                )));
            }
            _ => {}
        }
    }
    Ok(texts)
}

/// Reads and checks the configuration from files, the given environment and flags.
///
/// # Errors
/// A message that names source and key: unreadable file, unknown key, wrong type, unsafe value.
pub fn load(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<Config, ConfigError> {
    Ok(read(overrides, environment)?.0)
}

/// Reads and checks the configuration, and returns it with the source of each key.
pub(super) fn read(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Result<(Config, Origins), ConfigError> {
    let environment: HashMap<String, String> = environment.into_iter().collect();
    let known = known_keys()?;
    let mut builder = ::config::Config::builder();
    let mut origins = Origins::new();
    for path in files(overrides) {
        let name = format!("file {}", path.display());
        let text = std::fs::read_to_string(&path).map_err(|error| match error.kind() {
            ErrorKind::NotFound => ConfigError(format!("configuration {name}: does not exist")),
            _ => ConfigError(format!("configuration {name}: {error}")),
        })?;
        let file = File::from_str(&text, FileFormat::Toml);
        let given = keys_set_by(&file, &name, &known)?;
        builder = builder.add_source(file);
        origins.extend(given.into_iter().map(|key| (key, name.clone())));
    }
    for (variable, key) in ALIASES {
        if let Some(value) = environment.get(variable) {
            let value = if variable == "PORT" {
                format!("localhost:{value}")
            } else {
                value.clone()
            };
            builder = builder.set_override(key, value).map_err(refused)?;
            origins.insert(key.to_owned(), format!("environment {variable}"));
        }
    }
    // Aliases are overrides, so the prefixed names are set as overrides after them.
    let ours = prefixed(&environment);
    for key in keys_set_by(&ours, "environment", &known)? {
        let source = format!("environment {}", variable_of(&key));
        origins.insert(key, source);
    }
    for (key, value) in ours.collect().map_err(refused)? {
        builder = builder.set_override(key, value).map_err(refused)?;
    }
    for (key, value) in &overrides.values {
        builder = builder.set_override(*key, value.clone()).map_err(refused)?;
        origins.insert((*key).to_owned(), "command line".to_owned());
    }
    let mut config: Config = builder
        .build()
        .and_then(::config::Config::try_deserialize)
        .map_err(refused)?;
    read_url_file(&mut config, &mut origins)?;
    config.check()?;
    Ok((config, origins))
}

/// A variable that looks like a setting of this server, but is not read.
#[derive(Debug, PartialEq, Eq)]
pub struct IgnoredVariable {
    /// Its name, such as `PORTCULLIS_DATABASE_URL`.
    pub name: String,
    /// The name that would be read, such as `PORTCULLIS__DATABASE__URL`.
    pub expected: String,
}

/// Returns the variables whose name is that of a key, but with other underscores or in lower case. They are not an
/// error, because Kubernetes sets variables such as PORTCULLIS_PORT for a service of that name.
pub fn ignored_variables(environment: &[(String, String)]) -> Vec<IgnoredVariable> {
    let known = known_keys().unwrap_or_default();
    let mut ignored: Vec<IgnoredVariable> = environment
        .iter()
        .filter_map(|(name, _)| {
            let key = misspelled_key(name, PREFIX, known.iter().map(String::as_str))?;
            Some(IgnoredVariable {
                name: name.clone(),
                expected: variable_of(key),
            })
        })
        .collect();
    ignored.sort_by(|a, b| a.name.cmp(&b.name));
    ignored
}

/// Returns the variable that sets a key.
fn variable_of(key: &str) -> String {
    format!("{PREFIX}{}", key.to_uppercase().replace('.', "__"))
}

fn files(overrides: &Overrides) -> Vec<PathBuf> {
    if overrides.files.is_empty() && Path::new(DEFAULT_FILE).exists() {
        return vec![PathBuf::from(DEFAULT_FILE)];
    }
    overrides.files.clone()
}

fn prefixed(environment: &HashMap<String, String>) -> Environment {
    let ours: ::config::Map<String, String> = environment
        .iter()
        .filter(|(name, _)| name.starts_with(PREFIX))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    let source = Environment::with_prefix("PORTCULLIS")
        .prefix_separator("__")
        .separator("__")
        .try_parsing(true)
        .list_separator(",")
        .source(Some(ours));
    LISTS
        .iter()
        .fold(source, |source, key| source.with_list_parse_key(key))
}

/// Returns the keys that a source sets. Fails if one of them is unknown.
fn keys_set_by(
    source: &impl Source,
    name: &str,
    known: &BTreeSet<String>,
) -> Result<BTreeSet<String>, ConfigError> {
    let collected = source
        .collect()
        .map_err(|error| ConfigError(format!("configuration {name}: {error}")))?;
    let mut given = BTreeSet::new();
    for (key, value) in &collected {
        collect_given(value, key, &mut given);
    }
    refuse_unknown(&given, name, known)?;
    // An empty table of a known section sets nothing.
    given.retain(|key| known.contains(key));
    Ok(given)
}

/// Reads the URL of the database from the file that `database.url_file` names.
fn read_url_file(config: &mut Config, origins: &mut Origins) -> Result<(), ConfigError> {
    if let Some(path) = &config.database.url_file {
        if config.database.url.is_some() {
            return Err(ConfigError::key(
                "database.url_file",
                "cannot be combined with `database.url`",
            ));
        }
        let text =
            read_secret_file(path).map_err(|why| ConfigError::key("database.url_file", why))?;
        config.database.url = Some(text);
        origins.insert(
            "database.url".to_owned(),
            format!("file {}", path.display()),
        );
    }
    Ok(())
}

/// Returns the configuration file if it contains a password of the database and all users of this machine can
/// read it.
pub fn exposed_file(
    overrides: &Overrides,
    environment: impl IntoIterator<Item = (String, String)>,
) -> Option<PathBuf> {
    let (config, origins) = read(overrides, environment).ok()?;
    let path = PathBuf::from(origins.get("database.url")?.strip_prefix("file ")?);
    let url = url::Url::parse(config.database.url.as_deref()?).ok()?;
    (has_password(&url) && is_read_by_all(&path)).then_some(path)
}

/// Returns whether a URL contains a password: in the user information or, as libpq allows, in the query.
pub(super) fn has_password(url: &url::Url) -> bool {
    url.password().is_some() || url.query_pairs().any(|(name, _)| name.contains("password"))
}

fn refused(error: ::config::ConfigError) -> ConfigError {
    ConfigError(format!("configuration: {error}"))
}

/// Returns all keys. They are derived from the defaults, so the list is always complete.
fn known_keys() -> Result<BTreeSet<String>, ConfigError> {
    let defaults = serde_json::to_value(Config::default())
        .map_err(|error| ConfigError(format!("configuration: {error}")))?;
    let mut keys = BTreeSet::new();
    flatten(&defaults, "", &mut |key, _| {
        keys.insert(key.to_owned());
    });
    Ok(keys)
}

/// Calls `visit` with every key below `path` and its value.
pub(super) fn flatten(
    value: &serde_json::Value,
    path: &str,
    visit: &mut impl FnMut(&str, &serde_json::Value),
) {
    match value {
        serde_json::Value::Object(members) => {
            for (name, value) in members {
                flatten(value, &join(path, name), visit);
            }
        }
        value => visit(path, value),
    }
}

fn refuse_unknown(
    given: &BTreeSet<String>,
    source: &str,
    known: &BTreeSet<String>,
) -> Result<(), ConfigError> {
    for key in given {
        let is_section = |known: &String| {
            let rest = known.strip_prefix(key.as_str());
            rest.is_some_and(|rest| rest.starts_with('.'))
        };
        if !known.contains(key) && !known.iter().any(is_section) {
            let hint = known
                .iter()
                .min_by_key(|candidate| strsim::levenshtein(candidate, key))
                .map_or_else(String::new, |nearest| {
                    format!("; did you mean `{nearest}`?")
                });
            return Err(ConfigError(format!(
                "configuration {source}: unknown key `{key}`{hint}"
            )));
        }
    }
    Ok(())
}

fn collect_given(value: &Value, path: &str, keys: &mut BTreeSet<String>) {
    match &value.kind {
        ValueKind::Table(members) if !members.is_empty() => {
            for (name, value) in members {
                collect_given(value, &join(path, name), keys);
            }
        }
        _ => {
            keys.insert(path.to_owned());
        }
    }
}

fn join(path: &str, name: &str) -> String {
    if path.is_empty() {
        name.to_owned()
    } else {
        format!("{path}.{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from_environment(pairs: &[(&str, &str)]) -> Result<Config, ConfigError> {
        let pairs = pairs
            .iter()
            .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        load(&Overrides::default(), pairs)
    }

    #[test]
    fn defaults_are_a_valid_configuration() {
        let config = from_environment(&[]).unwrap();
        assert_eq!(config.issuer().unwrap().as_str(), "http://localhost:8080");
        assert_eq!(config.database_url(), "sqlite:data/portcullis.db");
    }

    #[test]
    fn environment_sets_keys_lists_and_aliases() {
        let config = from_environment(&[
            ("PORTCULLIS__TOKENS__ACCESS", "2m"),
            ("PORTCULLIS__KEYS__KEK", "file:/a,env:B"),
            ("PORTCULLIS_PORT", "tcp://10.0.0.1:80"),
            ("DATABASE_URL", "postgres://alias/x"),
            ("PORT", "9090"),
        ])
        .unwrap();
        assert_eq!(config.tokens.access, super::super::HumanDuration::secs(120));
        assert_eq!(config.keys.kek, ["file:/a", "env:B"]);
        assert_eq!(
            config.database_url(),
            "postgres://alias/x?sslmode=verify-full"
        );
        assert_eq!(config.issuer().unwrap().as_str(), "http://localhost:9090");
        let config = from_environment(&[
            ("PORTCULLIS__DATABASE__URL", "sqlite:mine.db"),
            ("DATABASE_URL", "postgres://alias/x"),
        ])
        .unwrap();
        assert_eq!(config.database_url(), "sqlite:mine.db");
    }

    #[test]
    fn misspelled_variables_are_found_and_injected_ones_are_not() {
        let names = |names: &[&str]| {
            let pairs: Vec<(String, String)> = names
                .iter()
                .map(|name| ((*name).to_owned(), String::new()))
                .collect();
            let found = ignored_variables(&pairs).into_iter();
            found
                .map(|found| (found.name, found.expected))
                .collect::<Vec<_>>()
        };
        for (name, expected) in [
            ("PORTCULLIS_DATABASE_URL", "PORTCULLIS__DATABASE__URL"),
            ("PORTCULLIS_ISSUER", "PORTCULLIS__ISSUER"),
            ("portcullis__issuer", "PORTCULLIS__ISSUER"),
            ("PORTCULLIS_LISTEN__PUBLIC", "PORTCULLIS__LISTEN__PUBLIC"),
            (
                "PORTCULLIS_LISTEN_MANAGEMENT_TLS_KEY",
                "PORTCULLIS__LISTEN__MANAGEMENT_TLS__KEY",
            ),
        ] {
            assert_eq!(names(&[name]), [(name.to_owned(), expected.to_owned())]);
        }
        let injected = [
            "PORTCULLIS_PORT",
            "PORTCULLIS_SERVICE_HOST",
            "PORTCULLIS_SERVICE_PORT_HTTPS",
            "PORTCULLIS_PORT_8080_TCP_ADDR",
            "PORTCULLIS_DATABASE_PORT",
            "PORTCULLIS_DATABASE_SERVICE_HOST",
            "PORTCULLIS_GUARD__ISSUER",
            "PORTCULLIS__ISSUER",
            "DATABASE_URL",
        ];
        assert_eq!(names(&injected), []);
    }

    #[cfg(unix)]
    #[test]
    fn non_utf8_variables_are_rejected_only_with_our_prefix() {
        use std::os::unix::ffi::OsStringExt;
        let odd = |start: &str| OsString::from_vec([start.as_bytes(), b"\xff"].concat());
        let fine = || ("PORT".into(), "9".into());
        let foreign = [
            (OsString::from("LESSCHARSET"), odd("latin")),
            (odd("X"), "1".into()),
            (OsString::from("PORTCULLIS_PORT"), odd("")),
            fine(),
        ];
        assert_eq!(texts(foreign).unwrap(), [("PORT".into(), "9".into())]);
        for ours in ["PORTCULLIS__ISSUER", "DATABASE_URL", "PORT", "RUST_LOG"] {
            let refused = texts([fine(), (ours.into(), odd("sesame"))]).unwrap_err();
            let sentence = format!("configuration environment {ours}: is not UTF-8");
            assert_eq!(refused.to_string(), sentence);
        }
        assert!(texts([(odd("PORTCULLIS__"), "1".into())]).is_err());
    }

    #[test]
    fn plain_http_requires_loopback_or_a_trusted_proxy() {
        let https = ("PORTCULLIS__ISSUER", "https://id.example.com");
        let anywhere = ("PORTCULLIS__LISTEN__PUBLIC", "0.0.0.0:443");
        let tls = [
            ("PORTCULLIS__LISTEN__TLS__CERTIFICATE", "/c"),
            ("PORTCULLIS__LISTEN__TLS__KEY", "/k"),
        ];
        let proxy = ("PORTCULLIS__HTTP__TRUSTED_PROXIES", "10.0.0.7");
        assert!(from_environment(&[https, anywhere]).is_err());
        assert!(from_environment(&[https, anywhere, proxy]).is_ok());
        assert!(from_environment(&[https, anywhere, tls[0], tls[1]]).is_ok());
        let message = from_environment(&tls).unwrap_err().to_string();
        assert!(
            message.contains("`listen.tls`: the listener uses TLS, but the issuer"),
            "{message}"
        );
    }

    #[test]
    fn unknown_and_unsafe_values_are_rejected_with_their_key() {
        let refusals = [
            (
                ("PORTCULLIS__TOKENS__ACESS", "2m"),
                "environment: unknown key `tokens.acess`; did you mean `tokens.access`?",
            ),
            (
                ("PORTCULLIS__TOKENS__ACCESS", "16m"),
                "`tokens.access`: 16m is out of range",
            ),
            (
                ("PORTCULLIS__TOKENS__ACCESS", "soon"),
                "invalid duration `soon`",
            ),
            (
                ("PORTCULLIS__ISSUER", "http://id.example.com"),
                "`issuer`: `http://id.example.com` must be https",
            ),
            (
                ("PORTCULLIS__LISTEN__PUBLIC", "0.0.0.0:8080"),
                "`listen.public`: 0.0.0.0:8080 is reachable",
            ),
            (
                ("PORTCULLIS__DATABASE__URL", "mysql://x"),
                "`database.url`: must begin",
            ),
            (
                ("PORTCULLIS__KEYS__KEK", "keys/kek"),
                "expected file:PATH, credential:NAME or env:NAME, got `keys/kek`",
            ),
            (("PORTCULLIS__LOGIN__ARGON2__PASSES", "1"), "`login.argon2`"),
            (
                ("PORTCULLIS__HTTP__TRUSTED_PROXIES", "10.0.0.0/8,0.0.0.0/0"),
                "`http.trusted_proxies`: 0.0.0.0/0 trusts all",
            ),
            (
                ("PORTCULLIS__HTTP__TRUSTED_PROXIES", "10.0.0.1/8"),
                "use 10.0.0.0/8, or the address alone",
            ),
            (
                ("PORTCULLIS__HTTP__DENY", "example.com"),
                "invalid network `example.com`",
            ),
            (
                ("PORTCULLIS__LIMITS__PER_IP", "0"),
                "`limits.per_ip`: must be 1",
            ),
            (("PORTCULLIS__LIMITS__MODE", "off"), "does not have variant"),
            (
                ("PORTCULLIS__LISTEN__TLS__KEY", "/x"),
                "`listen.tls`: requires both",
            ),
        ];
        for (pair, expected) in refusals {
            let message = from_environment(&[pair]).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        }
    }
}
