//! `demo`: a server on a fresh embedded database with a demo user, a demo application and a demo API
//! guarded by the verifier. It relaxes nothing, and nothing of it exists in `serve`.

mod application;
mod cast;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use actix_web::web::Data;
use anyhow::Context;
use cast::Cast;
use portcullis_runtime::ShutdownSignals;

use super::Exit;
use super::serve::{background, bind, run_until_stopped};
use crate::app::App;
use crate::config::{Address, Config, DataDir, HumanDuration};
use crate::secret::Entropy;
use crate::time::Clock;
use crate::{id, log, metrics};

#[derive(clap::Args)]
pub struct Arguments {
    /// Port of the server; the demo application takes the next one. Default: 8080, or the next pair
    /// that is free.
    #[arg(long)]
    port: Option<u16>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let port = choose_port(arguments.port)?;
    let folder = Folder::fresh()?;
    let config = configuration(port, &folder.0);
    log::start(&config.log, Clock::System);
    metrics::begin();
    actix_web::rt::System::new().block_on(demonstrate(config, port))
}

/// A folder for this run alone, removed at its end.
struct Folder(PathBuf);

impl Folder {
    fn fresh() -> anyhow::Result<Self> {
        let name = format!(
            "portcullis-demo-{}",
            id::uuid(&Entropy::system(), Clock::System.now())
        );
        let path = std::env::temp_dir().join(name);
        let mut builder = std::fs::DirBuilder::new();
        #[cfg(unix)]
        std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
        builder
            .create(&path)
            .with_context(|| format!("{} cannot be made", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// The asked-for pair of ports, or the first free one from 8080 on.
fn choose_port(asked: Option<u16>) -> anyhow::Result<u16> {
    let free = |port: u16| port < u16::MAX && [port, port + 1].into_iter().all(is_free);
    match asked {
        Some(port) if free(port) => Ok(port),
        Some(port) => Err(Exit {
            code: 1,
            message: format!(
                "port {port} or {} is taken; choose another one with --port",
                u32::from(port) + 1
            ),
        }
        .into()),
        None => (0..50)
            .map(|step| 8080 + 2 * step)
            .find(|port| free(*port))
            .ok_or_else(|| {
                Exit {
                    code: 1,
                    message: "no free port from 8080 on; choose one with --port".into(),
                }
                .into()
            }),
    }
}

fn is_free(port: u16) -> bool {
    TcpListener::bind(("127.0.0.1", port)).is_ok()
        && TcpListener::bind(("::1", port)).map_or_else(
            |error| error.kind() != std::io::ErrorKind::AddrInUse,
            |_| true,
        )
}

fn configuration(port: u16, folder: &Path) -> Config {
    let mut config = Config {
        data_dir: DataDir(folder.to_owned()),
        ..Config::default()
    };
    config.keys.kek = vec![format!("file:{}", folder.join("kek").display())];
    config.listen.public = Address::new("localhost", port);
    config.listen.management = Address::new("127.0.0.1", 0);
    config.log.level = "warn".to_owned();
    // Nothing stands in front of it.
    config.shutdown.delay = HumanDuration::secs(0);
    config
}

async fn demonstrate(config: Config, port: u16) -> anyhow::Result<()> {
    let app = Data::new(App::start(config, Clock::System, Entropy::system()).await?);
    let application = format!("http://localhost:{}", port + 1);
    let cast = Cast::register(&app, &application).await?;
    let (listeners, signals) = (
        bind(&app)?,
        ShutdownSignals::install().context("cannot install the signal handlers")?,
    );
    let tasks = background(&app);
    let server = actix_web::rt::spawn(run_until_stopped(app.clone(), listeners, signals, tasks));
    let demo = application::start(&app, &cast, port + 1).await?;
    cast.introduce(&app);
    server.await.context("the server failed")??;
    demo.stop(true).await;
    Ok(())
}
