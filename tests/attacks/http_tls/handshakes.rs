//! TLS: versions, cipher suites, early data, replaced certificates, and half-open handshakes.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustls::crypto::aws_lc_rs::kx_group;
use rustls::{ClientConnection, Stream};
use socket2::{Domain, Socket, Type};

use super::{address, blocking, encrypted};
use crate::fixtures::tls::{self, Pair};
use crate::fixtures::{Server, log};
use crate::{Row, Stage, row};

pub const ROWS: &[Row] = &[
    row!(a445_weak_tls_handshakes_fail),
    row!(a446_tls_early_data_is_not_offered),
    row!(a447_half_open_handshakes_are_limited),
    row!(a448_replaced_certificate_is_served_without_failures),
    row!(a515_half_open_flood_does_not_block_other_addresses),
];

/// A ClientHello (RFC 5246 §7.4.1.2, RFC 8446 §4.1.2) with any values.
struct ClientHello<'a> {
    version: [u8; 2],
    suites: &'a [u16],
    compression: &'a [u8],
    groups: &'a [u16],
}

const SUITES_12: [u16; 3] = [0xc02b, 0xc02c, 0xcca9];
const X25519: u16 = 0x001d;
const P256: u16 = 0x0017;

impl ClientHello<'_> {
    fn bytes(&self) -> Vec<u8> {
        let with_length = |bytes: Vec<u8>| {
            let length = u16::try_from(bytes.len()).unwrap().to_be_bytes();
            [length.to_vec(), bytes].concat()
        };
        let words = |words: &[u16]| words.iter().flat_map(|word| word.to_be_bytes()).collect();
        let extension =
            |id: u16, body: Vec<u8>| [id.to_be_bytes().to_vec(), with_length(body)].concat();
        let schemes = [
            0x0403, 0x0804, 0x0401, 0x0503, 0x0805, 0x0501, 0x0203, 0x0201,
        ];
        let extensions = [
            extension(10, with_length(words(self.groups))),
            extension(11, vec![1, 0]),
            extension(13, with_length(words(&schemes))),
            extension(0xff01, vec![0]),
        ]
        .concat();
        let hello = [
            self.version.to_vec(),
            vec![7; 32],
            vec![0],
            with_length(words(self.suites)),
            vec![u8::try_from(self.compression.len()).unwrap()],
            self.compression.to_vec(),
            with_length(extensions),
        ]
        .concat();
        let length = u32::try_from(hello.len()).unwrap().to_be_bytes();
        let handshake = [vec![1], length[1..].to_vec(), hello].concat();
        [vec![22, 3, 1], with_length(handshake)].concat()
    }

    /// Returns the first record of the response, if any: type 22 is a handshake, 21 an alert.
    fn answer(&self, address: &str) -> Option<Vec<u8>> {
        let mut stream = TcpStream::connect(address).unwrap();
        stream
            .set_read_timeout(Some(Duration::from_secs(5)))
            .unwrap();
        stream.write_all(&self.bytes()).unwrap();
        let mut head = [0; 5];
        stream.read_exact(&mut head).ok()?;
        let mut body = vec![0; usize::from(u16::from_be_bytes([head[3], head[4]]))];
        stream.read_exact(&mut body).ok()?;
        Some([head.to_vec(), body].concat())
    }

    fn is_served(&self, address: &str) -> bool {
        self.answer(address).is_some_and(|record| record[0] == 22)
    }
}

async fn a445_weak_tls_handshakes_fail(stage: &Stage) {
    let server = encrypted(stage, |_| {}).await;
    let address = address(&server);
    let found = blocking(move || {
        let good = ClientHello {
            version: [3, 3],
            suites: &SUITES_12,
            compression: &[0],
            groups: &[X25519, P256],
        };
        let mut wrong = Vec::new();
        // Handshakes that the client of rustls cannot send. First a valid one, to test the encoding.
        let answer = good.answer(&address);
        if !answer
            .as_ref()
            .is_some_and(|record| record[0] == 22 && record[5] == 2)
        {
            wrong.push(format!("TLS 1.2: {answer:?}"));
        }
        for (name, minor) in [("SSLv3", 0), ("TLS 1.0", 1), ("TLS 1.1", 2)] {
            if (ClientHello {
                version: [3, minor],
                ..good
            })
            .is_served(&address)
            {
                wrong.push(format!("{name} is served"));
            }
        }
        // Every cipher suite number; RC4, 3DES, CBC, NULL, export, static RSA and DHE are among them.
        let all = (0x0001..=0x00ff)
            .chain(0xc001..=0xc0ff)
            .chain(0xcca8..=0xccae);
        let served: Vec<u16> = all
            .filter(|suite| *suite != 0x00ff)
            .filter(|suite| {
                ClientHello {
                    suites: &[*suite],
                    ..good
                }
                .is_served(&address)
            })
            .collect();
        if served != SUITES_12 {
            wrong.push(format!("suites served: {served:04x?}"));
        }
        for (name, group) in [
            ("P-384", 0x0018),
            ("P-521", 0x0019),
            ("X448", 0x001e),
            ("sect163k1", 1),
        ] {
            if (ClientHello {
                groups: &[group],
                ..good
            })
            .is_served(&address)
            {
                wrong.push(format!("{name} is served"));
            }
        }
        // The server's first choice is taken, whatever the client prefers.
        let mut turned = SUITES_12;
        turned.reverse();
        for suites in [&SUITES_12, &turned] {
            let record = ClientHello { suites, ..good }.answer(&address);
            let record = record.unwrap_or_default();
            let session = record.get(43).map_or(0, |length| usize::from(*length));
            let chosen = record.get(43 + session + 1..43 + session + 3);
            if chosen != Some(&[0xc0, 0x2c]) {
                wrong.push(format!("of {suites:04x?} {chosen:02x?} is chosen"));
            }
        }
        // Offered compression is not chosen. Renegotiation is marked secure, and rustls refuses it.
        let record = ClientHello {
            compression: &[1, 0],
            ..good
        }
        .answer(&address)
        .unwrap_or_default();
        let session = record.get(43).map_or(0, |length| usize::from(*length));
        if record.get(43 + session + 3) != Some(&0) {
            wrong.push(format!("compression: {record:?}"));
        }
        wrong
    });
    let wrong = found.await;
    stage.check(1, wrong.is_empty(), || wrong.join("; "));
    // The remaining options work in both versions.
    for (case, version) in [(2, &rustls::version::TLS12), (3, &rustls::version::TLS13)] {
        let mut config = tls::ours().client();
        config = rustls::ClientConfig::builder_with_provider(Arc::clone(config.crypto_provider()))
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(roots())
            .with_no_client_auth();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        let spoken = request_over_tls(&server, Arc::new(config), "/oauth2/jwks").await;
        stage.check(case, spoken.status.starts_with("HTTP/1.1 200"), || {
            spoken.status.clone()
        });
        stage.check(case, spoken.protocol.as_deref() == Some("http/1.1"), || {
            format!("{:?}", spoken.protocol)
        });
    }
    server.remove().await;
}

fn roots() -> rustls::RootCertStore {
    use rustls::pki_types::CertificateDer;
    use rustls::pki_types::pem::PemObject;
    let mut roots = rustls::RootCertStore::empty();
    let pem = tls::ours().pem.as_bytes();
    roots
        .add(CertificateDer::from_pem_slice(pem).unwrap())
        .unwrap();
    roots
}

/// The result of one request over TLS.
struct TlsResponse {
    status: String,
    protocol: Option<String>,
    /// Whether early data could have been sent.
    early: bool,
    leaf: Vec<u8>,
}

async fn request_over_tls(
    server: &Server,
    config: Arc<rustls::ClientConfig>,
    path: &str,
) -> TlsResponse {
    let (address, path) = (address(server), path.to_owned());
    blocking(move || {
        let name = "op.example".try_into().unwrap();
        let mut tls = ClientConnection::new(config, name).unwrap();
        let mut tcp = TcpStream::connect(address).unwrap();
        tcp.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
        let early = tls.early_data().is_some();
        let request =
            format!("GET {path} HTTP/1.1\r\nHost: op.example\r\nConnection: close\r\n\r\n");
        let mut stream = Stream::new(&mut tls, &mut tcp);
        let mut heard = Vec::new();
        let outcome = stream
            .write_all(request.as_bytes())
            .and_then(|()| stream.read_to_end(&mut heard));
        let text = String::from_utf8_lossy(&heard);
        let status = text.lines().next().unwrap_or_default().to_owned();
        TlsResponse {
            status: if heard.is_empty() {
                format!("{outcome:?}")
            } else {
                status
            },
            protocol: tls
                .alpn_protocol()
                .map(|name| String::from_utf8_lossy(name).into_owned()),
            early,
            leaf: tls
                .peer_certificates()
                .and_then(|chain| chain.first())
                .map(|leaf| leaf.to_vec())
                .unwrap_or_default(),
        }
    })
    .await
}

async fn a446_tls_early_data_is_not_offered(stage: &Stage) {
    let server = encrypted(stage, |_| {}).await;
    let mut config = tls::ours().client();
    config.enable_early_data = true;
    let config = Arc::new(config);
    for round in 0..3 {
        // From the second connection on, the client has a session ticket.
        let spoken = request_over_tls(&server, Arc::clone(&config), "/oauth2/jwks").await;
        stage.check(1, spoken.status.starts_with("HTTP/1.1 200"), || {
            spoken.status.clone()
        });
        stage.check(1, !spoken.early, || {
            format!("round {round}: early data is offered")
        });
    }
    server.remove().await;
}

async fn a448_replaced_certificate_is_served_without_failures(stage: &Stage) {
    let folder = crate::fixtures::server::scratch().join(format!("renewal-{:?}", stage.db()));
    let old = Pair::new(&folder, "current", None);
    let new = Pair::new(&folder, "renewed", None);
    let server = encrypted(stage, |config| {
        config.listen.tls.certificate = Some(old.certificate.clone());
        config.listen.tls.key = Some(old.key.clone());
    })
    .await;
    let leaf = |pair: &Pair| {
        use rustls::pki_types::CertificateDer;
        use rustls::pki_types::pem::PemObject;
        CertificateDer::from_pem_slice(pair.pem.as_bytes())
            .unwrap()
            .to_vec()
    };
    // The client trusts both certificates, and no others.
    let both = || {
        let mut roots = rustls::RootCertStore::empty();
        for pair in [&old, &new] {
            roots.add(leaf(pair).into()).unwrap();
        }
        let provider = Arc::clone(old.client().crypto_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        Arc::new(config)
    };
    let first = request_over_tls(&server, both(), "/oauth2/jwks").await;
    stage.check(1, first.leaf == leaf(&old), || {
        "not the first certificate".to_owned()
    });
    // A key of another certificate changes nothing. The right pair is loaded within 5 s.
    let mark = log::mark();
    tls::write_private(&old.key, &std::fs::read_to_string(&new.key).unwrap());
    let told = |name: &str| {
        let since = log::since(mark);
        since.iter().any(|event| {
            event.get("event").is_some_and(|event| event == name)
                && event
                    .get("certificate")
                    .is_some_and(|path| path.contains(folder.to_str().unwrap()))
        })
    };
    let started = Instant::now();
    while !told("tls.reload_failed") && started.elapsed() < Duration::from_secs(5) {
        let spoken = request_over_tls(&server, both(), "/oauth2/jwks").await;
        stage.check(2, spoken.status.starts_with("HTTP/1.1 200"), || {
            spoken.status.clone()
        });
        stage.check(2, spoken.leaf == leaf(&old), || {
            "half a pair is served".to_owned()
        });
    }
    stage.check(2, told("tls.reload_failed"), || "no alert".to_owned());
    new.replaces(&old);
    let (started, mut renewed) = (Instant::now(), None);
    while renewed.is_none() && started.elapsed() < Duration::from_secs(8) {
        let spoken = request_over_tls(&server, both(), "/oauth2/jwks").await;
        stage.check(3, spoken.status.starts_with("HTTP/1.1 200"), || {
            spoken.status.clone()
        });
        renewed = (spoken.leaf == leaf(&new)).then(|| started.elapsed());
    }
    stage.check(
        3,
        renewed.is_some_and(|took| took < Duration::from_secs(5)),
        || format!("{renewed:?}"),
    );
    stage.check(3, told("tls.reloaded"), || "not logged".to_owned());
    server.remove().await;
    // An alert is logged 13 days before the expiry, but not 15 days before it.
    for (case, days, alert) in [(4, 13, true), (5, 15, false)] {
        let start = i64::try_from(crate::fixtures::server::start_of_time().secs()).unwrap();
        let name = format!("ends-in-{days}");
        let pair = Pair::new(&folder, &name, Some(start + days * 86_400));
        let mark = log::mark();
        let server = encrypted(stage, |config| {
            config.listen.tls.certificate = Some(pair.certificate.clone());
            config.listen.tls.key = Some(pair.key.clone());
        })
        .await;
        let alerts = log::since(mark).into_iter().filter(|event| {
            event
                .get("event")
                .is_some_and(|event| event == "tls.expiring")
                && event
                    .get("certificate")
                    .is_some_and(|path| path.contains(&name))
        });
        let alerts: Vec<_> = alerts.collect();
        stage.check(case, alerts.is_empty() != alert, || format!("{alerts:?}"));
        server.remove().await;
    }
}

/// Opens a handshake that stops after three bytes of a ClientHello, from an address of 127/8.
fn half_open(to: SocketAddr, from: Ipv4Addr) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SocketAddr::from((from, 0)).into())?;
    socket.connect(&to.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(&[22, 3, 1])?;
    stream.set_nonblocking(true)?;
    Ok(stream)
}

fn is_open(stream: &mut TcpStream) -> bool {
    let heard = stream.read(&mut [0; 64]);
    matches!(heard, Err(error) if error.kind() == std::io::ErrorKind::WouldBlock)
}

/// Waits until at most `number` of the streams are open. Returns how many are open, and how long it took.
fn until_open(streams: &mut Vec<TcpStream>, number: usize, begun: Instant) -> (usize, Duration) {
    loop {
        streams.retain_mut(is_open);
        if streams.len() <= number || begun.elapsed() > Duration::from_secs(12) {
            return (streams.len(), begun.elapsed());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Returns whether a connection limit was logged for an address.
fn is_limited(mark: usize, address: Ipv4Addr) -> bool {
    log::since(mark).iter().any(|event| {
        let is = |name: &str, value: &str| event.get(name).is_some_and(|found| found == value);
        is("event", "http.conn_limit")
            && is("reason", "handshakes")
            && is("ip", &address.to_string())
    })
}

async fn a447_half_open_handshakes_are_limited(stage: &Stage) {
    const FLOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 41);
    let server = encrypted(stage, |_| {}).await;
    let to: SocketAddr = address(&server).parse().unwrap();
    let mark = log::mark();
    let begun = Instant::now();
    let streams = blocking(move || {
        let opened = (0..400).filter_map(|_| half_open(to, FLOOD).ok());
        let mut streams: Vec<TcpStream> = opened.collect();
        let found = until_open(&mut streams, 100, begun);
        (found, streams)
    });
    let ((open, took), mut streams) = streams.await;
    stage.check(1, open == 100 && took < Duration::from_secs(4), || {
        format!("{open} open handshakes after {took:?}")
    });
    stage.check(1, is_limited(mark, FLOOD), || "not logged".to_owned());
    let asked = Instant::now();
    let spoken = request_over_tls(&server, Arc::new(tls::ours().client()), "/oauth2/jwks").await;
    let took = asked.elapsed();
    stage.check(
        2,
        spoken.status.starts_with("HTTP/1.1 200") && took < Duration::from_secs(2),
        || format!("{} after {took:?}", spoken.status),
    );
    let (open, took) = blocking(move || until_open(&mut streams, 0, begun)).await;
    let in_time = Duration::from_secs(4)..Duration::from_secs(8);
    stage.check(3, open == 0 && in_time.contains(&took), || {
        format!("{open} open handshakes after {took:?}")
    });
    // The address is not locked out.
    let again = blocking(move || {
        let mut streams: Vec<TcpStream> = half_open(to, FLOOD).into_iter().collect();
        streams.retain_mut(is_open);
        streams.len()
    });
    stage.check(4, again.await == 1, || "locked out".to_owned());
    let served = blocking(move || {
        let dhe = [0x0033, 0x0039, 0x0067, 0x006b, 0x009e, 0x009f, 0xccaa];
        let groups = [0x0100, 0x0101, 0x0102, 0x0103, 0x0104];
        let offer = |suites: &[u16], groups: &[u16]| {
            let hello = ClientHello {
                version: [3, 3],
                suites,
                compression: &[0],
                groups,
            };
            hello.is_served(&to.to_string())
        };
        (offer(&dhe, &groups), offer(&SUITES_12, &groups))
    });
    stage.check(5, served.await == (false, false), || {
        "finite-field groups are served".to_owned()
    });
    let groups = [
        kx_group::X25519,
        kx_group::SECP256R1,
        kx_group::X25519MLKEM768,
    ];
    for (case, group) in (6..).zip(groups) {
        let mut provider = rustls::crypto::aws_lc_rs::default_provider();
        provider.kx_groups = vec![group];
        let config = rustls::ClientConfig::builder_with_provider(Arc::new(provider))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots())
            .with_no_client_auth();
        let spoken = request_over_tls(&server, Arc::new(config), "/oauth2/jwks").await;
        stage.check(case, spoken.status.starts_with("HTTP/1.1 200"), || {
            format!("{:?}: {}", group.name(), spoken.status)
        });
    }
    server.remove().await;
}

async fn a515_half_open_flood_does_not_block_other_addresses(stage: &Stage) {
    const FLOOD: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 31);
    let server = encrypted(stage, |_| {}).await;
    let to: SocketAddr = address(&server).parse().unwrap();
    let mark = log::mark();
    let over = Arc::new(AtomicBool::new(false));
    let flood = {
        let over = Arc::clone(&over);
        actix_web::rt::task::spawn_blocking(move || {
            let mut streams: Vec<TcpStream> = Vec::new();
            let mut opened = 0_usize;
            while !over.load(Ordering::SeqCst) {
                streams.retain_mut(is_open);
                let more = 400 - streams.len();
                streams.extend((0..more).filter_map(|_| half_open(to, FLOOD).ok()));
                opened += more;
                std::thread::sleep(Duration::from_millis(50));
            }
            opened
        })
    };
    // Longer than the handshake timeout, so that connections which are closed too late are noticed.
    let begun = Instant::now();
    let mut requests = 0;
    while begun.elapsed() < Duration::from_secs(7) {
        let asked = Instant::now();
        let spoken =
            request_over_tls(&server, Arc::new(tls::ours().client()), "/oauth2/jwks").await;
        let took = asked.elapsed();
        stage.check(
            1,
            spoken.status.starts_with("HTTP/1.1 200") && took < Duration::from_secs(2),
            || format!("{} after {took:?}", spoken.status),
        );
        requests += 1;
    }
    over.store(true, Ordering::SeqCst);
    let opened = flood.await.unwrap();
    stage.check(2, requests > 5, || format!("only {requests} requests"));
    stage.check(3, opened > 1_000, || format!("only {opened} connections"));
    stage.check(4, is_limited(mark, FLOOD), || "not logged".to_owned());
    server.remove().await;
}
