//! The real proxies, with the configurations of `docs/examples` but for the addresses.

use std::net::SocketAddr;
use std::process::Command;

use crate::process::{Folder, Running, free_address};

const NGINX: &str = include_str!("../../../../docs/examples/nginx.conf");
const CADDY: &str = include_str!("../../../../docs/examples/Caddyfile");
const HAPROXY: &str = include_str!("../../../../docs/examples/haproxy.cfg");
const HAPROXY_LUA: &str = include_str!("../../../../docs/examples/haproxy-guard.lua");

/// What stands in the examples.
const AT: &str = "127.0.0.1:8080";
const SERVICE: &str = "127.0.0.1:3000";
const GUARD: &str = "127.0.0.1:9180";

/// A proxy that runs.
pub struct Proxy {
    pub at: SocketAddr,
    pub running: Running,
}

/// Where things are in a test.
struct Places {
    at: SocketAddr,
    guard: SocketAddr,
    service: SocketAddr,
}

impl Places {
    fn of(guard: SocketAddr, service: SocketAddr) -> Self {
        let at = free_address();
        Self { at, guard, service }
    }

    fn fill(&self, example: &str) -> String {
        [(AT, self.at), (SERVICE, self.service), (GUARD, self.guard)]
            .iter()
            .fold(example.to_owned(), |text, (found, instead)| {
                text.replace(found, &instead.to_string())
            })
    }

    async fn start(&self, folder: Folder, command: &mut Command) -> Proxy {
        let mut running = Running::start(folder, command);
        running.listens(self.at).await;
        Proxy {
            at: self.at,
            running,
        }
    }
}

pub async fn nginx(guard: SocketAddr, service: SocketAddr) -> Proxy {
    nginx_with(NGINX, guard, service).await
}

/// With another configuration than that of the documentation.
pub async fn nginx_with(site: &str, guard: SocketAddr, service: SocketAddr) -> Proxy {
    let places = Places::of(guard, service);
    let folder = Folder::new();
    folder.write("api.conf", &places.fill(site));
    // As Debian's file does, with everything in one folder and one process, which a test can end.
    let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
        .map(|name| format!("{name}_temp_path {name};"))
        .join(" ");
    let user = if is_root() { "user root;" } else { "" };
    let main = format!(
        "daemon off; master_process off; {user} pid nginx.pid; error_log stderr;\n\
         events {{ worker_connections 1024; }}\n\
         http {{ access_log off; {paths} include api.conf; }}\n"
    );
    let file = folder.write("nginx.conf", &main);
    let prefix = folder.path().to_owned();
    let mut command = Command::new(program("nginx"));
    command.arg("-p").arg(prefix).arg("-c").arg(file);
    command.args(["-e", "stderr"]);
    places.start(folder, &mut command).await
}

pub async fn caddy(guard: SocketAddr, service: SocketAddr) -> Proxy {
    let places = Places::of(guard, service);
    let folder = Folder::new();
    // Without a name there is no certificate to be had; any host will do.
    let site = format!("http://:{}", places.at.port());
    let site = places.fill(CADDY).replace("api.example.com", &site);
    let options = "{\n\tadmin off\n\tdefault_bind 127.0.0.1\n}";
    let file = folder.write("Caddyfile", &format!("{options}\n{site}"));
    let home = folder.path().to_owned();
    let mut command = Command::new(program("caddy"));
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(file)
        .env("HOME", home);
    places.start(folder, &mut command).await
}

pub async fn haproxy(guard: SocketAddr, service: SocketAddr) -> Proxy {
    haproxy_with(HAPROXY_LUA, guard, service).await
}

/// With a script that breaks off before it has asked.
pub async fn broken_haproxy(guard: SocketAddr, service: SocketAddr) -> Proxy {
    let asks = "core.httpclient():get(";
    assert!(HAPROXY_LUA.contains(asks));
    let script = HAPROXY_LUA.replace(asks, "nothing:get(");
    haproxy_with(&script, guard, service).await
}

async fn haproxy_with(script: &str, guard: SocketAddr, service: SocketAddr) -> Proxy {
    let places = Places::of(guard, service);
    let folder = Folder::new();
    let script = folder.write("guard.lua", &places.fill(script));
    let settings = places.fill(HAPROXY);
    let known = "/etc/haproxy/portcullis-guard.lua";
    assert!(settings.contains(known));
    let settings = settings.replace(known, script.to_str().unwrap());
    let file = folder.write("haproxy.cfg", &settings);
    let mut command = Command::new(program("haproxy"));
    command.args(["-db", "-f"]).arg(file);
    places.start(folder, &mut command).await
}

/// Debian keeps servers out of the PATH of people.
fn program(name: &str) -> String {
    let folders = ["/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin"];
    let found = folders.iter().map(|folder| format!("{folder}/{name}"));
    let found = found
        .into_iter()
        .find(|path| std::path::Path::new(path).exists());
    found.unwrap_or_else(|| panic!("{name} is not installed; `tests/run` installs it"))
}

fn is_root() -> bool {
    let id = Command::new("id").arg("-u").output().unwrap();
    id.stdout == b"0\n"
}
