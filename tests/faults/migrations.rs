//! F17: migrations that are interrupted.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use crate::fixtures::Look;
use crate::fixtures::installation::{Installation, refused};
use crate::fixtures::postgres;

/// Returns an installation with an empty database.
pub fn empty(name: &str) -> Installation {
    let mut installation = Installation::new();
    let name = format!("{name}_{}", std::process::id());
    installation.database = Some(postgres::empty_database(&name));
    installation
}

/// Returns every migration with its statements, by name.
pub fn migrations(kind: &str) -> Vec<(String, String)> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("migrations")
        .join(kind);
    let mut found: Vec<_> = std::fs::read_dir(folder)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .map(|path| {
            let name = path.file_name().unwrap().to_str().unwrap().to_owned();
            (name, std::fs::read_to_string(path.join("up.sql")).unwrap())
        })
        .collect();
    found.sort();
    found
}

/// Creates the schema of an earlier version: the first migrations, and no later one.
fn as_of(kind: &str, versions: usize) -> String {
    let table = "CREATE TABLE __diesel_schema_migrations (\n       version VARCHAR(50) PRIMARY KEY NOT NULL,\n       run_on TIMESTAMP NOT NULL DEFAULT CURRENT_TIMESTAMP\n);";
    let steps = migrations(kind).into_iter().take(versions).map(|(name, statements)| {
        let version = name.split('_').next().unwrap();
        format!("{statements};INSERT INTO __diesel_schema_migrations (version) VALUES ('{version}');")
    });
    [table.to_owned()].into_iter().chain(steps).collect()
}

/// Returns everything that a PostgreSQL schema consists of, one line each, and the applied migrations.
fn schema_of(url: &str) -> Vec<String> {
    let query = "
        SELECT format('column %s.%s %s %s %s', table_name, column_name, data_type, is_nullable, column_default) AS line
          FROM information_schema.columns WHERE table_schema = 'public'
        UNION ALL SELECT indexdef FROM pg_indexes WHERE schemaname = 'public'
        UNION ALL SELECT format('constraint %s %s %s', conrelid::regclass, conname, pg_get_constraintdef(oid))
          FROM pg_constraint WHERE connamespace = 'public'::regnamespace
        ORDER BY 1";
    let mut found = Look::at(url).lines(query);
    if found
        .iter()
        .any(|line| line.contains("__diesel_schema_migrations"))
    {
        let query =
            "SELECT 'migration ' || version AS line FROM __diesel_schema_migrations ORDER BY 1";
        found.extend(Look::at(url).lines(query));
        found.extend(Look::at(url).lines("SELECT 'head ' || h::text AS line FROM feed_head h"));
    }
    found
}

/// Returns the same of a SQLite database, after checking that its file is intact.
fn schema_in(path: &Path) -> Vec<String> {
    let mut look = Look::at_file(path);
    let mut lines = |query: &str| look.lines(query);
    assert_eq!(
        lines("SELECT integrity_check AS line FROM pragma_integrity_check"),
        ["ok"]
    );
    let mut found = lines("SELECT coalesce(sql, name) AS line FROM sqlite_master ORDER BY name");
    if found
        .iter()
        .any(|line| line.contains("__diesel_schema_migrations"))
    {
        found.extend(lines(
            "SELECT version AS line FROM __diesel_schema_migrations ORDER BY 1",
        ));
    }
    if found.iter().any(|line| line.contains("feed_head")) {
        found.extend(lines(
            "SELECT count(*) || ' of ' || sum(epoch) AS line FROM feed_head",
        ));
    }
    found
}

/// Makes a PostgreSQL database close the connection right after its n-th change of the schema. The counter is
/// a sequence, which no rollback resets.
const TRAP: &str = "
    CREATE SCHEMA trap;
    CREATE SEQUENCE trap.made;
    CREATE TABLE trap.set (at BIGINT NOT NULL);
    CREATE FUNCTION trap.spring() RETURNS event_trigger LANGUAGE plpgsql AS $$
    BEGIN
        IF nextval('trap.made') = (SELECT at FROM trap.set) THEN
            PERFORM pg_terminate_backend(pg_backend_pid());
        END IF;
    END $$;
    CREATE EVENT TRIGGER trap ON ddl_command_end EXECUTE FUNCTION trap.spring();";

fn set_trap(url: &str, at: usize) {
    let set = format!(
        "SELECT setval('trap.made', 1, false); DELETE FROM trap.set; INSERT INTO trap.set VALUES ({at})"
    );
    Look::at(url).execute(&set);
}

/// F17 on PostgreSQL: the connection is closed at every statement that changes the schema, when starting from
/// an empty database, from the first version, and from the previous one. Nothing is left half done, and the
/// next run produces the same schema as an undisturbed one.
#[test]
fn f17_migration_interrupted_at_any_statement_rolls_back() {
    let _turn = crate::alone();
    let fresh = empty("undisturbed");
    fresh.done(&["migrate", "up"]);
    let wanted = schema_of(fresh.database.as_deref().unwrap());
    let mut cuts = 0;
    for version in [0, 1, migrations("postgres").len() - 1] {
        let installation = empty("interrupted");
        let url = installation.database.as_deref().unwrap();
        let mut look = Look::at(url);
        if version > 0 {
            look.execute(&as_of("postgres", version));
        }
        look.execute(TRAP);
        drop(look);
        let before = schema_of(url);
        for at in 1.. {
            set_trap(url, at);
            let output = installation.run(&["migrate", "up"], &[]);
            if output.status.success() {
                break;
            }
            refused(&output, 69, "migration failed");
            assert_eq!(schema_of(url), before, "version {version}, statement {at}");
            cuts += 1;
        }
        assert_eq!(schema_of(url), wanted, "from version {version}");
    }
    println!("{cuts} migrations interrupted");
    assert!(cuts > 50, "{cuts}");
}

/// Kills a process as a power cut does, and waits until PostgreSQL has noticed.
fn kill(mut child: Child, url: &str) {
    child.kill().unwrap();
    child.wait().unwrap();
    let name = postgres::name(url);
    let there = format!("SELECT pid::text AS line FROM pg_stat_activity WHERE datname = '{name}'");
    while !Look::at(postgres::url()).lines(&there).is_empty() {
        std::thread::yield_now();
    }
}

/// F17 on PostgreSQL: the process is killed at moments all over its run.
#[test]
fn f17_killed_postgres_migration_is_atomic() {
    let _turn = crate::alone();
    let fresh = empty("undisturbed");
    let begun = std::time::Instant::now();
    fresh.done(&["migrate", "up"]);
    let usual = begun.elapsed();
    let wanted = schema_of(fresh.database.as_deref().unwrap());
    let (mut whole, mut nothing) = (0, 0);
    const KILLS: u32 = 12;
    for kill_at in 0..KILLS {
        let installation = empty("killed");
        let url = installation.database.clone().unwrap();
        let child = installation
            .command(&["migrate", "up"], &[])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        passes(usual * kill_at / (KILLS - 3));
        kill(child, &url);
        let found = schema_of(&url);
        match found.is_empty() {
            true => nothing += 1,
            false => {
                assert_eq!(found, wanted);
                whole += 1;
            }
        }
        installation.done(&["migrate", "up"]);
        assert_eq!(schema_of(&url), wanted);
    }
    println!("killed {KILLS} times: {nothing} did nothing, {whole} everything");
    assert!(nothing > 0);
}

/// Waits for a moment of the run: a fixed offset, not a condition.
fn passes(time: Duration) {
    let begun = std::time::Instant::now();
    while begun.elapsed() < time {
        std::thread::yield_now();
    }
}

/// F17 on SQLite: the process is killed when the WAL has grown to each length in turn, starting from an empty
/// database and from each earlier version.
#[test]
fn f17_killed_sqlite_migration_is_atomic() {
    let _turn = crate::alone();
    let fresh = Installation::new();
    fresh.done(&["migrate", "up"]);
    let wanted = schema_in(&fresh.folder.join("data/portcullis.db"));
    let (mut whole, mut nothing) = (0, 0);
    for version in 0..migrations("sqlite").len() {
        for pages in (0..).step_by(8) {
            let installation = Installation::new();
            let file = installation.folder.join("data/portcullis.db");
            std::fs::create_dir_all(file.parent().unwrap()).unwrap();
            if version > 0 {
                let mut look = Look::at_file(&file);
                look.execute("PRAGMA journal_mode = WAL");
                look.execute(&as_of("sqlite", version));
            }
            let before = match version {
                0 => Vec::new(),
                _ => schema_in(&file),
            };
            let mut child = installation
                .command(&["migrate", "up"], &[])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn()
                .unwrap();
            let log = file.with_extension("db-wal");
            let grown = || std::fs::metadata(&log).map_or(0, |log| log.len()) > pages * 4_096;
            let mut ended = None;
            while !grown() && ended.is_none() {
                ended = child.try_wait().unwrap();
            }
            let _ = child.kill();
            child.wait().unwrap();
            let found = schema_in(&file);
            match found == wanted {
                true => whole += 1,
                false => {
                    assert_eq!(found, before, "version {version}, {pages} pages");
                    nothing += 1;
                }
            }
            installation.done(&["migrate", "up"]);
            assert_eq!(schema_in(&file), wanted, "version {version}, {pages} pages");
            if ended.is_some() {
                break;
            }
        }
    }
    println!("killed at a write: {nothing} did nothing, {whole} everything");
    assert!(nothing > 0 && whole > 0);
}
