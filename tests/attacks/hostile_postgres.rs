//! A row of the catalogue: a hostile PostgreSQL server, played by a proxy that manipulates the messages of
//! a real one.

use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};

use crate::expect::{json_error, summary};
use crate::fixtures::client::basic;
use crate::fixtures::{Db, Server, postgres, raw};
use crate::token_code::Flow;
use crate::token_refresh::redeem_new_code;
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[row!(a492_hostile_postgres_peer_causes_503)];

/// How the proxy manipulates the rows that it forwards.
#[derive(Clone, Copy)]
enum Manipulation {
    Nothing,
    TooFewFields,
    WrongTypes,
    /// Announces a message of 1 GiB and closes the connection.
    Huge,
}

/// A proxy that listens on a Unix socket like PostgreSQL's.
struct ManipulatingProxy {
    folder: PathBuf,
    odd: Arc<AtomicU8>,
}

impl ManipulatingProxy {
    /// Starts a proxy for the server whose socket is `real`.
    fn in_front_of(real: PathBuf) -> Self {
        let folder = std::env::temp_dir().join(format!("hostile-postgres-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).unwrap();
        let listener = UnixListener::bind(folder.join(".s.PGSQL.5432")).unwrap();
        let odd = Arc::new(AtomicU8::new(Manipulation::Nothing as u8));
        let mode = Arc::clone(&odd);
        // The thread ends with the process.
        std::thread::spawn(move || {
            for client in listener.incoming().map_while(Result::ok) {
                let Ok(server) = UnixStream::connect(&real) else {
                    continue;
                };
                let (mut from, mut to) = (client.try_clone().unwrap(), server.try_clone().unwrap());
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Both);
                });
                let mode = Arc::clone(&mode);
                std::thread::spawn(move || {
                    let _ = forward_messages(server, &client, &mode);
                    let _ = client.shutdown(std::net::Shutdown::Both);
                });
            }
        });
        Self { folder, odd }
    }

    fn set_manipulation(&self, odd: Manipulation) {
        self.odd.store(odd as u8, Ordering::SeqCst);
    }
}

impl Drop for ManipulatingProxy {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

/// Forwards the messages of the server: a type byte, a length and a body each.
fn forward_messages(
    mut server: UnixStream,
    mut client: &UnixStream,
    mode: &AtomicU8,
) -> std::io::Result<()> {
    loop {
        let mut head = [0; 5];
        server.read_exact(&mut head)?;
        let length = u32::from_be_bytes([head[1], head[2], head[3], head[4]]) as usize;
        let mut body = vec![0; length - 4];
        server.read_exact(&mut body)?;
        if head[0] == b'D' {
            match mode.load(Ordering::SeqCst) {
                m if m == Manipulation::TooFewFields as u8 => {
                    let fields = u16::from_be_bytes([body[0], body[1]]) - 1;
                    body[..2].copy_from_slice(&fields.to_be_bytes());
                }
                m if m == Manipulation::WrongTypes as u8 => body = mistyped(&body),
                m if m == Manipulation::Huge as u8 => {
                    client.write_all(&[b'D', 0x40, 0, 0, 0, 0, 1])?;
                    return Ok(());
                }
                _ => {}
            }
        }
        let length = u32::try_from(body.len() + 4).unwrap();
        client.write_all(&[&[head[0]], &length.to_be_bytes()[..], &body].concat())?;
    }
}

/// Replaces every value with three bytes that are neither a number nor UTF-8.
fn mistyped(body: &[u8]) -> Vec<u8> {
    let fields = u16::from_be_bytes([body[0], body[1]]);
    let mut odd = fields.to_be_bytes().to_vec();
    for _ in 0..fields {
        odd.extend(3_i32.to_be_bytes());
        odd.extend([0xFF, 0xFE, 0xFF]);
    }
    odd
}

async fn a492_hostile_postgres_peer_causes_503(stage: &Stage) {
    if stage.db() == Db::Sqlite {
        // An embedded database has no peer.
        return stage.check(0, true, String::new);
    }
    let query = postgres::url()
        .split_once('?')
        .map_or("", |(_, query)| query);
    let host = form_urlencoded::parse(query.as_bytes()).find(|(name, _)| name == "host");
    let Some((_, real)) = host.filter(|(_, host)| host.starts_with('/')) else {
        // A PostgreSQL server that is reached over the network.
        return stage.check(0, true, String::new);
    };
    let peer = ManipulatingProxy::in_front_of(Path::new(real.as_ref()).join(".s.PGSQL.5432"));
    let between = peer.folder.display().to_string();
    let server = Server::with(Db::Postgres, |config| {
        let url = config.database_url();
        config.database.url = Some(url.replace(real.as_ref(), &between));
    })
    .await;
    let mut flow = Flow::begin(&server).await;
    let mut refresh = redeem_new_code(&mut flow).await.refresh().to_owned();
    let header = basic(flow.web.id(), flow.web.secret.as_ref().unwrap().expose());
    for (case, odd) in [
        (1, Manipulation::TooFewFields),
        (2, Manipulation::WrongTypes),
        (3, Manipulation::Huge),
    ] {
        let body = format!("grant_type=refresh_token&refresh_token={refresh}");
        let request = raw::post("/oauth2/token", &[("Authorization", &header)], &body);
        peer.set_manipulation(odd);
        // Sent raw, outside the journal, because this row expects a 5xx.
        for _ in 0..3 {
            let answer = raw::bytes(&server.base, request.clone()).await.unwrap();
            stage.expect(case, json_error(&answer, 503, "temporarily_unavailable"));
            stage.check(case, answer.header("retry-after").is_some(), || {
                summary(&answer)
            });
        }
        peer.set_manipulation(Manipulation::Nothing);
        // Each broken connection costs one more request; nothing was consumed.
        let mut after = raw::bytes(&server.base, request.clone()).await.unwrap();
        for _ in 0..server.config.database.pool_size {
            if after.status == 200 {
                break;
            }
            after = raw::bytes(&server.base, request.clone()).await.unwrap();
        }
        stage.check(case, after.status == 200, || summary(&after));
        if after.status == 200 {
            refresh = after.json()["refresh_token"].as_str().unwrap().to_owned();
        }
    }
    let name = postgres::name(&server.config.database_url()).to_owned();
    server.stop().await;
    postgres::drop_database(&postgres::database(&name));
}
