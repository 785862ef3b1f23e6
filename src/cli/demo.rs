//! `demo`: starts a server with an empty embedded database, a user, an application and an API that uses the
//! verifier. It relaxes no check, and `serve` contains nothing of it.

mod application;
mod fixtures;

use std::net::TcpListener;
use std::path::{Path, PathBuf};

use actix_web::web::Data;
use anyhow::Context;
use fixtures::Fixtures;
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
    /// Port of the server. The demo application uses the next one [default: 8080, or the next free pair].
    #[arg(long)]
    port: Option<u16>,
}

pub fn run(arguments: &Arguments) -> anyhow::Result<()> {
    let port = choose_port(arguments.port)?;
    let folder = TempDir::create()?;
    let config = configuration(port, &folder.0);
    log::start(&config.log, Clock::System);
    metrics::begin();
    actix_web::rt::System::new().block_on(serve(config, port))
}

/// A temporary directory of this run, which is removed at its end.
struct TempDir(PathBuf);

impl TempDir {
    fn create() -> anyhow::Result<Self> {
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
            .with_context(|| format!("cannot create {}", path.display()))?;
        Ok(Self(path))
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Returns the first port of the requested pair, or of the first free pair from 8080 on.
fn choose_port(requested: Option<u16>) -> anyhow::Result<u16> {
    let free = |port: u16| port < u16::MAX && [port, port + 1].into_iter().all(is_free);
    match requested {
        Some(port) if free(port) => Ok(port),
        Some(port) => Err(Exit {
            code: 1,
            message: format!(
                "port {port} or {} is in use; choose another one with --port",
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
    // There is no load balancer.
    config.shutdown.delay = HumanDuration::secs(0);
    config
}

async fn serve(config: Config, port: u16) -> anyhow::Result<()> {
    let app = Data::new(App::start(config, Clock::System, Entropy::system()).await?);
    let application = format!("http://localhost:{}", port + 1);
    let fixtures = Fixtures::register(&app, &application).await?;
    let (listeners, signals) = (
        bind(&app)?,
        ShutdownSignals::install().context("cannot install the signal handlers")?,
    );
    let tasks = background(&app);
    let server = actix_web::rt::spawn(run_until_stopped(app.clone(), listeners, signals, tasks));
    let demo = application::start(&app, &fixtures, port + 1).await?;
    fixtures.print_instructions(&app);
    server.await.context("the server failed")??;
    demo.stop(true).await;
    Ok(())
}
