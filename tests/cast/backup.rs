//! A copy of a node's database, and machines on which it is restored.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};

use portcullis::config::{Config, DataDir};
use portcullis::time::Clock;

use super::place::empty_folder;
use super::{Db, Server, postgres};

/// The database as it was at one instant.
pub struct Backup {
    db: Db,
    config: Config,
    clock: Clock,
    folder: PathBuf,
    /// On PostgreSQL, the database that holds the copy.
    url: Option<String>,
}

/// A name that no other folder or database of the tests has.
fn fresh_name() -> String {
    static NUMBER: AtomicUsize = AtomicUsize::new(0);
    let number = NUMBER.fetch_add(1, Ordering::SeqCst);
    format!("copy_{number}_{}", std::process::id())
}

/// Copies a database of PostgreSQL without connections.
fn copy_database(from: &str) -> String {
    let name = fresh_name();
    let copy = postgres::empty_database(&name);
    let name = postgres::name(&copy).to_owned();
    postgres::execute(&format!("DROP DATABASE {name}"));
    postgres::execute(&format!(
        "CREATE DATABASE {name} TEMPLATE {}",
        postgres::name(from)
    ));
    copy
}

impl Backup {
    /// Copies the database of a node, and returns the node, started again.
    pub async fn of(server: Server) -> (Server, Self) {
        let (db, config, clock) = (server.db, server.config.clone(), server.clock.clone());
        let folder = empty_folder(&fresh_name());
        let mut url = None;
        let server = match db {
            Db::Sqlite => {
                let file = folder.join("portcullis.db");
                server.app.store.copy_to(file.to_str().unwrap()).unwrap();
                server
            }
            Db::Postgres => {
                server.app.store.close().await.unwrap();
                server.stop().await;
                url = Some(copy_database(&config.database_url()));
                Server::serve(db, config.clone(), clock.clone()).await
            }
        };
        (
            server,
            Self {
                db,
                config,
                clock,
                folder,
                url,
            },
        )
    }

    /// A node on the copy, on a machine that has the KEK and nothing else.
    pub async fn restored(&self) -> Server {
        let machine = empty_folder(&fresh_name());
        let mut config = self.config.clone();
        let kek = self.config.keys.kek[0].strip_prefix("file:").unwrap();
        std::fs::copy(kek, machine.join("kek")).unwrap();
        config.keys.kek = vec![format!("file:{}", machine.join("kek").display())];
        self.starts(config).await
    }

    /// A node on the copy, on the machine that it was copied on.
    pub async fn put_back(&self) -> Server {
        self.starts(self.config.clone()).await
    }

    /// A node on an empty database, on the machine that the copy was made on.
    pub async fn replaced_by_nothing(&self) -> Server {
        let mut config = self.config.clone();
        match self.db {
            Db::Sqlite => config.data_dir = DataDir(empty_folder(&fresh_name())),
            Db::Postgres => config.database.url = Some(postgres::empty_database(&fresh_name())),
        }
        Server::serve(self.db, config, self.clock.clone()).await
    }

    async fn starts(&self, mut config: Config) -> Server {
        match &self.url {
            None => {
                let data = empty_folder(&fresh_name());
                std::fs::copy(
                    self.folder.join("portcullis.db"),
                    data.join("portcullis.db"),
                )
                .unwrap();
                config.data_dir = DataDir(data);
            }
            Some(url) => config.database.url = Some(copy_database(url)),
        }
        Server::serve(self.db, config, self.clock.clone()).await
    }
}

/// The text of the mark beside the KEK of a configuration; empty while there is none.
pub fn mark(config: &Config) -> String {
    let kek = config.keys.kek[0].strip_prefix("file:").unwrap();
    let folder = std::path::Path::new(kek).parent().unwrap();
    let files = std::fs::read_dir(folder)
        .unwrap()
        .map(|file| file.unwrap().path());
    let mut marks = files.filter(|file| file.extension().is_some_and(|ext| ext == "mark"));
    marks
        .next()
        .map(|file| std::fs::read_to_string(file).unwrap())
        .unwrap_or_default()
}

/// Loses the marks beside the KEK of a configuration.
pub fn forget_marks(config: &Config) {
    let kek = config.keys.kek[0].strip_prefix("file:").unwrap();
    let folder = std::path::Path::new(kek).parent().unwrap();
    for file in std::fs::read_dir(folder).unwrap() {
        let path = file.unwrap().path();
        if path.extension().is_some_and(|ext| ext == "mark") {
            std::fs::remove_file(path).unwrap();
        }
    }
}

impl Drop for Backup {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
        if let Some(url) = &self.url {
            postgres::drop_database(url);
        }
    }
}
