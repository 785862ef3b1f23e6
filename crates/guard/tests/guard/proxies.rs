//! The real proxies, with the configurations in `docs/examples` except for the addresses.

use std::net::SocketAddr;
use std::process::Command;

use crate::process::{Process, TempDir, free_address};

const NGINX: &str = include_str!("../../../../docs/examples/nginx.conf");
const CADDY: &str = include_str!("../../../../docs/examples/Caddyfile");
const HAPROXY: &str = include_str!("../../../../docs/examples/haproxy.cfg");
const HAPROXY_LUA: &str = include_str!("../../../../docs/examples/haproxy-guard.lua");

/// Address of the proxy in the examples.
const EXAMPLE_PROXY: &str = "127.0.0.1:8080";
/// Address of the service in the examples.
const EXAMPLE_SERVICE: &str = "127.0.0.1:3000";
/// Address of the guard in the examples.
const EXAMPLE_GUARD: &str = "127.0.0.1:9180";

/// A running proxy.
pub struct Proxy {
    pub address: SocketAddr,
    pub process: Process,
}

/// The addresses of one test.
struct Addresses {
    proxy: SocketAddr,
    guard: SocketAddr,
    service: SocketAddr,
}

impl Addresses {
    fn of(guard: SocketAddr, service: SocketAddr) -> Self {
        let proxy = free_address();
        Self {
            proxy,
            guard,
            service,
        }
    }

    fn fill(&self, example: &str) -> String {
        [
            (EXAMPLE_PROXY, self.proxy),
            (EXAMPLE_SERVICE, self.service),
            (EXAMPLE_GUARD, self.guard),
        ]
        .iter()
        .fold(example.to_owned(), |text, (example, address)| {
            text.replace(example, &address.to_string())
        })
    }

    async fn start(&self, folder: TempDir, command: &mut Command) -> Proxy {
        let mut process = Process::start(folder, command);
        process.wait_until_listening(self.proxy).await;
        Proxy {
            address: self.proxy,
            process,
        }
    }
}

pub async fn nginx(guard: SocketAddr, service: SocketAddr) -> Proxy {
    nginx_with(NGINX, guard, service).await
}

/// Starts nginx with a configuration other than the documented one.
pub async fn nginx_with(site: &str, guard: SocketAddr, service: SocketAddr) -> Proxy {
    let addresses = Addresses::of(guard, service);
    let folder = TempDir::new();
    folder.write("api.conf", &addresses.fill(site));
    // Like Debian's nginx.conf, but with all files in one directory and with a single process,
    // which the test can stop.
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
    addresses.start(folder, &mut command).await
}

pub async fn caddy(guard: SocketAddr, service: SocketAddr) -> Proxy {
    let addresses = Addresses::of(guard, service);
    let folder = TempDir::new();
    // Listen without a host name, because Caddy would request a certificate for it.
    let site = format!("http://:{}", addresses.proxy.port());
    let site = addresses.fill(CADDY).replace("api.example.com", &site);
    let options = "{\n\tadmin off\n\tdefault_bind 127.0.0.1\n}";
    let file = folder.write("Caddyfile", &format!("{options}\n{site}"));
    let home = folder.path().to_owned();
    let mut command = Command::new(program("caddy"));
    command
        .args(["run", "--adapter", "caddyfile", "--config"])
        .arg(file)
        .env("HOME", home);
    addresses.start(folder, &mut command).await
}

pub async fn haproxy(guard: SocketAddr, service: SocketAddr) -> Proxy {
    haproxy_with(HAPROXY_LUA, guard, service).await
}

/// Starts HAProxy with a script that fails before it calls the guard.
pub async fn broken_haproxy(guard: SocketAddr, service: SocketAddr) -> Proxy {
    let call = "core.httpclient():get(";
    assert!(HAPROXY_LUA.contains(call));
    let script = HAPROXY_LUA.replace(call, "nothing:get(");
    haproxy_with(&script, guard, service).await
}

async fn haproxy_with(script: &str, guard: SocketAddr, service: SocketAddr) -> Proxy {
    let addresses = Addresses::of(guard, service);
    let folder = TempDir::new();
    let script = folder.write("guard.lua", &addresses.fill(script));
    let settings = addresses.fill(HAPROXY);
    let documented = "/etc/haproxy/portcullis-guard.lua";
    assert!(settings.contains(documented));
    let settings = settings.replace(documented, script.to_str().unwrap());
    let file = folder.write("haproxy.cfg", &settings);
    let mut command = Command::new(program("haproxy"));
    command.args(["-db", "-f"]).arg(file);
    addresses.start(folder, &mut command).await
}

/// Returns the path of a program. Searches `sbin` as well, which is not in the `PATH` of Debian's
/// unprivileged users.
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
