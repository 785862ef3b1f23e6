//! The documented configuration of a proxy in front of the server.

use std::net::{TcpListener, TcpStream};
use std::process::{Child, Command};
use std::time::Duration;

use crate::fixtures::{Browser, Db, Server, server, wait};

const NGINX: &str = include_str!("../../docs/examples/nginx-server.conf");

/// A running nginx, which ends when it is dropped.
struct Nginx {
    child: Child,
    base: String,
}

impl Nginx {
    /// Starts nginx with the documented configuration, without TLS and in front of `upstream`.
    fn before(upstream: &str) -> Self {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = free.local_addr().unwrap().to_string();
        drop(free);
        let site: String = NGINX
            .replace("127.0.0.1:8080", upstream)
            .replace("443 ssl", &address)
            .lines()
            .filter(|line| !line.contains("ssl_certificate"))
            .map(|line| format!("{line}\n"))
            .collect();
        let folder = server::scratch().join("nginx");
        std::fs::create_dir_all(&folder).unwrap();
        let paths = ["client_body", "proxy", "fastcgi", "uwsgi", "scgi"]
            .map(|name| format!("{name}_temp_path {name};"))
            .join(" ");
        let is_root = crate::fixtures::postgres::is_root();
        let user = if is_root { "user root;" } else { "" };
        std::fs::write(folder.join("site.conf"), site).unwrap();
        std::fs::write(
            folder.join("nginx.conf"),
            format!(
                "daemon off; master_process off; {user} pid nginx.pid; error_log stderr;\n\
                 events {{ worker_connections 64; }}\n\
                 http {{ access_log off; {paths} include site.conf; }}\n"
            ),
        )
        .unwrap();
        let mut command = Command::new("nginx");
        command.args(["-e", "stderr", "-c", "nginx.conf", "-p"]);
        let path = format!("{}:/usr/sbin", std::env::var("PATH").unwrap_or_default());
        let child = command.arg(&folder).env("PATH", path).spawn().unwrap();
        wait::until(Duration::from_secs(10), "nginx listens", || {
            TcpStream::connect(&address).is_ok()
        });
        Self {
            child,
            base: format!("http://{address}"),
        }
    }
}

impl Drop for Nginx {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The redirect to the client repeats `state`, and proxies limit the size of a response's headers.
#[actix_web::test]
async fn longest_state_fits_documented_proxies() {
    let server = Server::behind_proxy(Db::Sqlite).await;
    let web = server.shop().await;
    let nginx = Nginx::before(server.base.trim_start_matches("http://"));
    // Every character takes three bytes in a URL.
    let state = "=".repeat(2_048);
    let mut alice = Browser::new(&nginx.base);
    alice.allows(&web).await;
    let answer = alice.opens(&web.request(&[("state", &state)])).await;
    assert_eq!(answer.callback("state").as_deref(), Some(state.as_str()));
    assert!(answer.callback("code").is_some());
    // A redirect has no header that only pages need.
    assert!(answer.header("permissions-policy").is_none());
    server.remove().await;
}
