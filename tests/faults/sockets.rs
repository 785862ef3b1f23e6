//! Strangers on the sockets: slow ones (F21), very many (F22), and too much of everything (F23). They come
//! from addresses of 127/8; honest people, from others, are served meanwhile.

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::fixtures::installation::{Installation, Running};
use crate::fixtures::proc::{Proc, most_files};
use crate::fixtures::site::{Site, asks, base, management, sample};
use crate::fixtures::wait::until;
use crate::runs;

const JWKS: &str = "/oauth2/jwks";

fn get(path: &str) -> Vec<u8> {
    format!("GET {path} HTTP/1.1\r\nHost: op.example\r\n\r\n").into_bytes()
}

/// An address of 127/8 that honest people do not have.
fn stranger(n: usize) -> Ipv4Addr {
    Ipv4Addr::new(127, 0, 1, u8::try_from(2 + n % 249).unwrap())
}

/// A connection from an address of this machine.
fn connect(to: SocketAddr, from: Ipv4Addr, receives: Option<usize>) -> TcpStream {
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
    if let Some(bytes) = receives {
        socket.set_recv_buffer_size(bytes).unwrap();
    }
    socket
        .bind(&SocketAddr::from((from, 0)).into())
        .unwrap_or_else(|error| panic!("{from}: {error}"));
    socket.connect(&to.into()).unwrap();
    socket
        .set_read_timeout(Some(Duration::from_secs(20)))
        .unwrap();
    socket.into()
}

/// The status of the first answer on a connection; none when it was hung up on.
fn status(stream: &mut TcpStream) -> Option<u16> {
    let mut heard = [0; 12];
    stream.read_exact(&mut heard).ok()?;
    std::str::from_utf8(&heard[9..]).ok()?.parse().ok()
}

/// Sends bytes over a connection of its own.
fn says(to: SocketAddr, from: Ipv4Addr, bytes: &[u8]) -> Option<u16> {
    let mut stream = connect(to, from, None);
    // A server that has heard enough may hang up before everything is said.
    let _ = stream.write_all(bytes);
    status(&mut stream)
}

/// An honest person's request, each over a new connection from a new address: how long it took.
fn honest(door: &Door, n: usize) -> Duration {
    let from = Ipv4Addr::new(127, 0, 3, u8::try_from(2 + n % 249).unwrap());
    // The second writes to the database, too.
    let (path, wanted) = match n % 2 {
        0 => (JWKS, 200),
        _ => (door.authorize.as_str(), 303),
    };
    let begun = Instant::now();
    let said = says(door.to, from, &get(path));
    assert_eq!(said, Some(wanted), "{from}, request {n}");
    begun.elapsed()
}

/// The time within which all but each hundredth are answered.
fn p99(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() * 99 / 100]
}

/// Honest people come one after the other while `strangers` do what they do.
fn meanwhile<T>(door: &Door, strangers: impl FnOnce() -> T) -> (T, Vec<Duration>) {
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let people = scope.spawn(|| {
            let mut times = Vec::new();
            while !over.load(Ordering::SeqCst) {
                times.push(honest(door, times.len()));
                // They pace themselves: the figures are the strangers', not theirs.
                std::thread::sleep(Duration::from_millis(5));
            }
            times
        });
        struct Ends<'a>(&'a AtomicBool);
        impl Drop for Ends<'_> {
            fn drop(&mut self) {
                self.0.store(true, Ordering::SeqCst);
            }
        }
        let ends = Ends(&over);
        let outcome = strangers();
        drop(ends);
        (outcome, people.join().unwrap())
    })
}

/// What must hold for honest people: no errors (each request saw to that), and answers in bounded time.
#[track_caller]
fn served_as_before(before: Vec<Duration>, times: Vec<Duration>) {
    let (base, now, number) = (p99(before), p99(times.clone()), times.len());
    println!("honest: p99 {base:?} before, {now:?} meanwhile, of {number}");
    assert!(number > 50, "only {number} honest requests");
    // A debug build on two cores: what is looked for are seconds.
    let bound = Duration::from_secs(1).max(base * 10);
    assert!(now < bound, "{now:?}, {base:?} before");
}

/// Where the server answers, and an authorization request there.
struct Door {
    to: SocketAddr,
    authorize: String,
    /// The largest thing that anybody may ask for.
    sheet: String,
}

fn open() -> (Site, Running, Door) {
    let site = Site::open(Installation::new());
    let server = site.installation.serve(&[]);
    let (_, page) = runs(asks(&base(&server), "/account"));
    let sheet = page.split("href=\"/assets/").skip(1);
    let sheet = sheet.filter_map(|rest| rest.split('"').next());
    let sheet = sheet.filter(|name| name.ends_with(".css")).last();
    let door = Door {
        to: server.started("listen").parse().unwrap(),
        authorize: site.web(&base(&server)).request(&[]),
        sheet: format!("/assets/{}", sheet.unwrap()),
    };
    (site, server, door)
}

/// The server's open files and sockets, as it says itself: nobody else may look.
fn open_files(server: &Running) -> usize {
    let (_, page) = runs(asks(&management(server), "/metrics"));
    sample(&page, "process_open_fds").unwrap() as usize
}

/// How a connection is slow.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
enum Slow {
    /// It says nothing at all.
    Silent,
    /// Its first head does not end.
    Head,
    /// It was served once; its second head does not end.
    NextHead,
    /// Its body does not end.
    Body,
    /// It asks some and hardly reads.
    Reader,
    /// It asks for more than lies in buffers, and hardly reads.
    Glutton,
    /// It asks for more than the server reads ahead, and hardly reads.
    Pipeline,
}

impl Slow {
    const ALL: [Self; 7] = [
        Self::Silent,
        Self::Head,
        Self::NextHead,
        Self::Body,
        Self::Reader,
        Self::Glutton,
        Self::Pipeline,
    ];

    /// Whether it is the reading that is slow.
    const fn reads(self) -> bool {
        matches!(self, Self::Reader | Self::Glutton | Self::Pipeline)
    }

    fn begins(self, door: &Door) -> Vec<u8> {
        let head = b"GET /account HTTP/1.1\r\nHost: op.example\r\nX-Slow: ";
        match self {
            Self::Silent => Vec::new(),
            Self::Head => head.to_vec(),
            Self::NextHead => [get(JWKS), head.to_vec()].concat(),
            Self::Body => b"POST /oauth2/token HTTP/1.1\r\nHost: op.example\r\n\
                Content-Type: application/x-www-form-urlencoded\r\nContent-Length: 4000\r\n\r\n"
                .to_vec(),
            Self::Reader => get(JWKS).repeat(10),
            Self::Glutton => get(&door.sheet).repeat(1_000),
            Self::Pipeline => get(JWKS).repeat(8_000),
        }
    }

    fn opens(self, door: &Door, from: Ipv4Addr) -> Dribble {
        let small = self.reads().then_some(4_096);
        let mut stream = connect(door.to, from, small);
        stream.set_nonblocking(true).unwrap();
        let begins = self.begins(door);
        // Whatever of it does not fit is not said.
        let _ = stream.write(&begins);
        Dribble {
            slow: self,
            stream,
            opened: Instant::now(),
            lived: None,
        }
    }
}

/// A slow connection.
struct Dribble {
    slow: Slow,
    stream: TcpStream,
    opened: Instant,
    lived: Option<Duration>,
}

impl Dribble {
    /// A byte more; and whether the other side has hung up.
    fn goes_on(&mut self) {
        if self.lived.is_some() {
            return;
        }
        let mut part = [0; 4_096];
        let takes = if self.slow.reads() { 16 } else { 4_096 };
        let over = match self.stream.read(&mut part[..takes]) {
            Ok(0) => true,
            Ok(_) => false,
            Err(error) => error.kind() != ErrorKind::WouldBlock,
        };
        let speaks = self.slow != Slow::Silent && !self.slow.reads();
        if over || speaks && self.stream.write(b"x").is_err() {
            self.lived = Some(self.opened.elapsed());
        }
    }
}

/// F21. Up to 2,500 slow connections (the catalogue: 4,000) of five kinds from 249 addresses, and a few of
/// two more that make work. They are hung up on in their time. What slow readers were sent lies in the
/// kernel and they hear of the end late; so the server's open files say when all is over.
#[test]
fn f21_slow_connections_time_out_and_block_no_others() {
    let _turn = crate::alone();
    let most = most_files();
    let each = (most * 6 / 10 / 5).min(500);
    let (_site, server, door) = open();
    let before = (0..200).map(|n| honest(&door, n)).collect();
    let base = open_files(&server);
    let (figures, times) = meanwhile(&door, || {
        let mut all: Vec<Dribble> = Slow::ALL
            .into_iter()
            .flat_map(|slow| {
                let costly = matches!(slow, Slow::Glutton | Slow::Pipeline);
                let number = if costly { 4 } else { each };
                let door = &door;
                (0..number).map(move |n| slow.opens(door, stranger(n)))
            })
            .collect();
        let opened = Instant::now();
        let mut most_open = 0;
        loop {
            let open = open_files(&server);
            most_open = most_open.max(open);
            let (longest, kinds) = longest(&all);
            // Honest people have some open, too.
            if open < base + 20 || opened.elapsed() > Duration::from_secs(25) {
                println!("open files: {base} before, {most_open} at most, {open} in the end");
                break (opened.elapsed(), most_open, longest, kinds, all);
            }
            for dribble in &mut all {
                dribble.goes_on();
            }
            std::thread::sleep(Duration::from_millis(400));
        }
    });
    // The last few may still be there: nobody but the server ends them.
    let (ended, most_open, longest, kinds, _all) = figures;
    println!("all ended after {ended:?}; {kinds}");
    assert!(most_open > each * 3, "{most_open}");
    assert!(most_open < most * 8 / 10, "{most_open} of {most}");
    // Ten seconds, and some for a busy machine.
    assert!(ended < Duration::from_secs(16), "{ended:?}: {kinds}");
    assert!(longest < Duration::from_secs(16), "{longest:?}: {kinds}");
    served_as_before(before, times);
    let log = server.log().join("\n");
    assert!(!log.contains("server.panicked"), "{log}");
    // And all of it is seen.
    let begun = Instant::now();
    loop {
        let (_, page) = runs(asks(&management(&server), "/metrics"));
        let counted = |reason: &str| -> f64 {
            let lines = page.lines().filter(|line| {
                line.starts_with("portcullis_refused_total")
                    && line.contains(&format!("reason=\"{reason}\""))
            });
            let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<f64>().ok());
            values.sum()
        };
        let reasons = ["head", "body", "answer", "pipeline"];
        let seen = reasons.map(|reason| (reason, counted(reason)));
        if seen.iter().all(|(_, number)| *number >= 4.0) {
            println!("{seen:?}");
            break;
        }
        assert!(begun.elapsed() < Duration::from_secs(10), "{seen:?}");
        std::thread::sleep(Duration::from_millis(200));
    }
}

/// Reads one answer to its end, and returns its status.
fn hears(stream: &mut BufReader<TcpStream>) -> u16 {
    let mut lines = Vec::new();
    while lines.last().is_none_or(|line: &String| line != "\r\n") {
        let mut line = String::new();
        assert!(
            stream.read_line(&mut line).unwrap() > 0,
            "hung up on: {lines:?}"
        );
        lines.push(line.to_ascii_lowercase());
    }
    let length = lines
        .iter()
        .find_map(|line| line.strip_prefix("content-length:"));
    let mut body = vec![0; length.map_or(0, |length| length.trim().parse().unwrap())];
    stream.read_exact(&mut body).unwrap();
    lines[0][9..12].parse().unwrap()
}

/// F21, the other side: who asks all the time, as a proxy does, keeps the connection, for longer than any
/// single request may take.
#[test]
fn f21_active_connection_is_kept() {
    let _turn = crate::alone();
    let (_site, _server, door) = open();
    let mut stream = BufReader::new(connect(door.to, stranger(0), None));
    let mut answers = 0;
    // What is answered at once, and what is waited for.
    for (path, wanted) in [(JWKS, 200), (door.authorize.as_str(), 303)] {
        let begun = Instant::now();
        while begun.elapsed() < Duration::from_secs(7) {
            stream.get_mut().write_all(&get(path)).unwrap();
            assert_eq!(hears(&mut stream), wanted);
            answers += 1;
        }
    }
    println!("{answers} answers over one connection");
}

/// The longest life that ended, and a line of it all.
fn longest(all: &[Dribble]) -> (Duration, String) {
    let mut line = String::new();
    let mut longest = Duration::ZERO;
    for slow in Slow::ALL {
        let kind = all.iter().filter(|dribble| dribble.slow == slow);
        let lived: Vec<Duration> = kind.clone().filter_map(|dribble| dribble.lived).collect();
        let most = lived.iter().max().copied().unwrap_or_default();
        longest = longest.max(most);
        line += &format!(
            "{slow:?}: {} of {} ended, {most:?} at most; ",
            lived.len(),
            kind.count()
        );
    }
    (longest, line)
}

/// F22. One address gets its 256 and no more. Then 6,000 connections (the catalogue: 20,000, of which 2,048
/// would be let in) come from 40 addresses, say nothing and stay as long as they may; whoever is new and
/// honest is served meanwhile, and memory stays within 512 MiB.
#[test]
fn f22_excess_connections_leave_room_for_others() {
    let _turn = crate::alone();
    let (addresses, each) = (40, (most_files() * 6 / 10 / 40).min(150));
    let (_site, server, door) = open();
    let to = door.to;
    let proc = Proc(server.child.id());
    let before = (0..200).map(|n| honest(&door, n)).collect();
    let ((), times) = meanwhile(&door, || {
        let mut one: Vec<TcpStream> = (0..300).map(|_| connect(to, stranger(200), None)).collect();
        let mut served = 0;
        for stream in &mut one {
            let _ = stream.write_all(&get(JWKS));
            served += usize::from(status(stream) == Some(200));
        }
        println!("one address: {served} of {} served", one.len());
        // Some may have been let in, and be gone, before the last came.
        assert!((250..=256).contains(&served), "{served}");
        drop(one);
        let begun = Instant::now();
        let crowd: Vec<TcpStream> = (0..addresses * each)
            .map(|n| connect(to, stranger(n % addresses), None))
            .collect();
        let (open, memory) = (open_files(&server), proc.peak());
        println!(
            "{} connections within {:?}: {open} files open, {memory} MiB at most",
            crowd.len(),
            begun.elapsed()
        );
        assert!(memory < 512, "{memory} MiB");
        // Until the server has hung up on them all.
        for mut stream in crowd {
            let _ = stream.read_to_end(&mut Vec::new());
        }
    });
    served_as_before(before, times);
    let log = server.log().join("\n");
    let told = "\"event\":\"http.conn_limit\",\"reason\":\"connections\"";
    assert!(log.contains(told), "{log}");
    assert_eq!(
        log.matches(told).count(),
        1,
        "one line for an attacker: {log}"
    );
}

/// The management listener counts connections and watches them as the public one does.
#[test]
fn management_connections_of_one_address_are_limited() {
    let _turn = crate::alone();
    let (_site, server, _door) = open();
    let to: SocketAddr = server.started("management").parse().unwrap();
    let mut crowd: Vec<TcpStream> = (0..400)
        .map(|n| connect(to, stranger(n - n), None))
        .collect();
    for stream in &crowd {
        stream.set_nonblocking(true).unwrap();
    }
    let open = |crowd: &mut Vec<TcpStream>| {
        crowd.retain_mut(|stream| {
            let heard = stream.read(&mut [0; 64]);
            matches!(heard, Err(error) if error.kind() == ErrorKind::WouldBlock)
        });
        crowd.len()
    };
    let begun = Instant::now();
    until(Duration::from_secs(4), "256 connections are left", || {
        open(&mut crowd) <= 256
    });
    let mut other = BufReader::new(connect(to, Ipv4Addr::new(127, 0, 3, 1), None));
    for _ in 0..3 {
        other.get_mut().write_all(&get("/livez")).unwrap();
        assert_eq!(hears(&mut other), 200);
    }
    assert_eq!(crowd.len(), 256);
    // A connection that was in use ends quietly; those that said nothing are logged.
    assert_eq!(other.read(&mut [0; 64]).unwrap(), 0);
    let rest = Duration::from_secs(12).saturating_sub(begun.elapsed());
    until(rest, "no connection is left", || open(&mut crowd) == 0);
    let log = server.log();
    let told = |what: &str| log.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        told("\"event\":\"http.conn_limit\",\"reason\":\"connections\""),
        1
    );
    assert_eq!(told("\"ip\":\"127.0.3.1\""), 0);
}

/// What is too large, or no request at all, and how it is refused.
fn too_much() -> [(&'static str, Vec<u8>, u16); 7] {
    let get = |rest: &str| format!("GET {rest}\r\n\r\n").into_bytes();
    let host = "Host: op.example\r\nConnection: close";
    let post = |length: &str, body: String| {
        format!(
            "POST /oauth2/token HTTP/1.1\r\n{host}\r\n\
             Content-Type: application/x-www-form-urlencoded\r\n{length}\r\n\r\n{body}"
        )
        .into_bytes()
    };
    let many: String = (0..200).map(|n| format!("\r\nX-{n}: 1")).collect();
    let huge = "x".repeat(64 * 1_024);
    let chunks = format!("10000\r\n{huge}\r\n").repeat(4);
    let fields = "a=1&".repeat(1_000);
    [
        (
            "a header of 64 KiB",
            get(&format!("/oauth2/jwks HTTP/1.1\r\n{host}\r\nX: {huge}")),
            431,
        ),
        (
            "200 headers",
            get(&format!("/oauth2/jwks HTTP/1.1\r\n{host}{many}")),
            431,
        ),
        (
            "10,000 parameters in 20,000 bytes of a query",
            get(&format!(
                "/login?{} HTTP/1.1\r\n{host}",
                "&a".repeat(10_000)
            )),
            414,
        ),
        (
            "a body of 64 KiB",
            post("Content-Length: 65536", huge.clone()),
            413,
        ),
        (
            "a body of 256 KiB in chunks",
            post("Transfer-Encoding: chunked", chunks),
            413,
        ),
        (
            "two hosts",
            get(&format!(
                "/oauth2/jwks HTTP/1.1\r\nHost: op.example\r\n{host}"
            )),
            400,
        ),
        (
            "1,000 fields",
            post(&format!("Content-Length: {}", fields.len()), fields),
            400,
        ),
    ]
}

/// F23. Some 4,200 requests of seven kinds, each over a connection of its own. The refusals are the right
/// ones, those of the HTTP layer below us are seen too, and the last thousands take no memory that the first
/// hundreds did not.
#[test]
fn f23_oversized_requests_are_rejected_without_memory() {
    let _turn = crate::alone();
    let (_site, server, door) = open();
    let to = door.to;
    let proc = Proc(server.child.id());
    let rounds = |number: usize| {
        std::thread::scope(|scope| {
            for thread in 0..4 {
                scope.spawn(move || {
                    for (what, bytes, wanted) in too_much() {
                        let heard: Vec<Option<u16>> = (0..number)
                            .map(|n| says(to, stranger(thread * 60 + n % 60), &bytes))
                            .collect();
                        // Whoever still talks when it is hung up on may not hear why.
                        let right = heard.iter().filter(|said| **said == Some(wanted)).count();
                        let deaf = heard.iter().filter(|said| said.is_none()).count();
                        assert_eq!(right + deaf, number, "{what}: {heard:?}");
                        assert!(right > 0, "{what}: {heard:?}");
                    }
                });
            }
        });
    };
    rounds(25);
    let before = proc.resident();
    let begun = Instant::now();
    rounds(125);
    let after = proc.resident();
    println!(
        "3,500 within {:?}: {before} MiB, then {after} MiB",
        begun.elapsed()
    );
    assert!(after < before + 48, "{before} MiB, then {after} MiB");
    honest(&door, 0);
    let log = server.log().join("\n");
    assert!(!log.contains("server.panicked"), "{log}");
    let (_, page) = runs(asks(&management(&server), "/metrics"));
    for (event, reason, code) in [
        ("http.too_large", "head", "431"),
        ("http.malformed", "request", "400"),
    ] {
        let told = format!("\"event\":\"{event}\",\"reason\":\"{reason}\",\"ip\":\"127.0.1.");
        assert!(log.contains(&told), "{told}");
        let refused = format!("endpoint=\"none\",code=\"{code}\",reason=\"{reason}\"");
        let refused = sample(&page, &format!("portcullis_refused_total{{{refused}}}"));
        assert!(refused >= Some(600.0), "{refused:?}: {page}");
    }
    // And not twice.
    assert!(!log.contains("stream error"));
}
