//! haproxy in front of some ingresses, asking their `/readyz`, as a balancer in front of pods does.

use std::fs::{self, File};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::frame::{Ingress, watcher};
use crate::kafka::free_ports;

/// The process.
pub struct Haproxy {
    /// Where webhooks go.
    pub address: SocketAddr,
    log: PathBuf,
    child: Child,
}

impl Haproxy {
    /// Starts it in front of these.
    pub fn start(directory: &Path, backends: &[&Ingress]) -> Haproxy {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, free_ports(1)[0]));
        let server = |(n, ingress): (usize, &&Ingress)| {
            let (to, check) = (ingress.address, ingress.admin);
            format!(
                "  server ingress-{n} {to} check addr {} port {} inter 200ms fall 2 rise 2\n",
                check.ip(),
                check.port()
            )
        };
        let servers: String = backends.iter().enumerate().map(server).collect();
        // A request is given to another server only where no connection could be made: nothing of it was sent.
        let text = format!(
            "global\n  maxconn 4000\n  log stderr local0 notice\n\
             defaults\n  mode http\n  log global\n  timeout connect 2s\n  timeout client 150s\n  timeout server 100s\n\
             \x20 timeout check 2s\n\
             \x20 retries 3\n  retry-on conn-failure\n  option redispatch 1\n\
             frontend webhooks\n  bind {address}\n  default_backend ingress\n\
             backend ingress\n  balance roundrobin\n  option httpchk\n  http-check send meth GET uri /readyz\n{servers}"
        );
        let (config, log) = (directory.join("haproxy.cfg"), directory.join("haproxy.log"));
        fs::write(&config, text).expect("written");
        let out = File::create(&log).expect("a file for what it says");
        let mut command = Command::new("haproxy");
        command.args(["-db", "-f"]).arg(&config).stdin(Stdio::null());
        command.stdout(out.try_clone().expect("a second handle")).stderr(out);
        // Where Debian puts it, which is not on everybody's PATH.
        command.env("PATH", "/usr/local/sbin:/usr/sbin:/sbin:/usr/local/bin:/usr/bin:/bin");
        let child = command.spawn().unwrap_or_else(|error| panic!("haproxy (Debian: haproxy): {error}"));
        watcher().watch(&child);
        let proxy = Haproxy { address, log, child };
        crate::frame::wait("haproxy listens", || TcpStream::connect(address).is_ok());
        proxy
    }

    /// What it says, of servers that it takes out and in for the most part.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }
}

impl Drop for Haproxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        watcher().forget(&self.child);
    }
}
