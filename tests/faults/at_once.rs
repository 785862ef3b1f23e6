//! F18: several nodes migrate concurrently.

use std::process::{Child, Stdio};

use crate::fixtures::installation::{Installation, refused};
use crate::fixtures::postgres;
use crate::migrations::{empty, migrations};

/// Runs several migrations concurrently, and returns the output of each.
fn at_once(installation: &Installation, arguments: &[&str], nodes: usize) -> Vec<String> {
    let start = || {
        installation
            .command(arguments, &[])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap()
    };
    let running: Vec<Child> = (0..nodes).map(|_| start()).collect();
    let ended = running
        .into_iter()
        .map(|child| child.wait_with_output().unwrap());
    ended
        .map(|output| {
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "{said}");
            String::from_utf8(output.stdout).unwrap()
        })
        .collect()
}

/// F18. Twelve rounds of five processes on each database, instead of fifty rounds of three nodes.
#[test]
fn f18_concurrent_migrations_run_once() {
    let _turn = crate::alone();
    let all = migrations("postgres").len();
    for round in 0..24 {
        let installation = match round % 2 {
            0 => empty("together"),
            _ => Installation::new(),
        };
        let mut said = at_once(&installation, &["migrate", "up"], 5);
        said.sort();
        let mut wanted = vec!["0 migration(s) applied\n".to_owned(); 4];
        wanted.push(format!("{all} migration(s) applied\n"));
        assert_eq!(said, wanted, "round {round}");
    }
}

/// F18 with servers that migrate at their start: all of them start, and they are nodes of one issuer.
#[test]
fn f18_nodes_start_concurrently_on_empty_database() {
    let _turn = crate::alone();
    let mut installation = empty("nodes");
    installation.done(&["keys", "generate-kek", "--out", "keys/kek"]);
    installation
        .told
        .push(("PORTCULLIS__DATABASE__AUTO_MIGRATE", "true".to_owned()));
    for round in 0..2 {
        let url =
            postgres::empty_database(postgres::name(installation.database.as_deref().unwrap()));
        installation.database = Some(url);
        let nodes: Vec<_> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..3)
                .map(|_| scope.spawn(|| installation.serve(&[])))
                .collect();
            starting
                .into_iter()
                .map(|node| node.join().unwrap())
                .collect()
        });
        let secrets = installation.count("SELECT count(*) AS n FROM server_secrets");
        let twice = installation.count(
            "SELECT count(*) AS n FROM (SELECT 1 FROM signing_keys GROUP BY use, alg, generation HAVING count(*) > 1) AS twice",
        );
        assert_eq!((secrets, twice), (1, 0), "round {round}");
        for node in nodes {
            assert!(
                !node
                    .log()
                    .iter()
                    .any(|line| line.contains("\"level\":\"error\"")),
                "{:#?}",
                node.log()
            );
            assert_eq!(node.stop(), Some(0));
        }
    }
}

/// F18 on SQLite: a SQLite database has one server. The others exit with an error and change nothing.
#[test]
fn f18_only_one_server_starts_on_one_sqlite_file() {
    let _turn = crate::alone();
    for round in 0..4 {
        let installation = Installation::new();
        let start = || {
            installation
                .command(&["serve"], &[])
                .stderr(Stdio::piped())
                .spawn()
                .unwrap()
        };
        let mut running: Vec<Child> = (0..3).map(|_| start()).collect();
        let mut ended = Vec::new();
        while ended.len() < 2 {
            let over = running
                .iter_mut()
                .position(|child| child.try_wait().unwrap().is_some());
            if let Some(over) = over {
                ended.push(running.remove(over).wait_with_output().unwrap());
            }
        }
        for output in &ended {
            refused(output, 69, "another server is using");
        }
        let mut last = running.remove(0);
        let text = last.stderr.take().unwrap();
        let started = std::io::BufRead::lines(std::io::BufReader::new(text))
            .map_while(Result::ok)
            .any(|line| line.contains("server.started"));
        assert!(started, "round {round}");
        last.kill().unwrap();
        last.wait().unwrap();
    }
}
