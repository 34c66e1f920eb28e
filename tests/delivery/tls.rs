//! Certificates: only a server is asked that one of the authorities has signed that the host trusts.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::{self, sleep};
use std::time::Duration;

use imgbased_helper::delivery::url::Url;
use tempfile::TempDir;

use crate::child;
use crate::fetch::{digest, fetch, good};

/// The authorities that curl(1) trusts.
const AUTHORITIES: &str = "/etc/ssl/certs/ca-certificates.crt";

/// An authority with certificates for 127.0.0.1: a good one, one that has expired, and one that nobody else has signed.
const MAKE: &str = "\
    openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj '/CN=An authority'
    openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request -subj /CN=127.0.0.1
    echo subjectAltName=IP:127.0.0.1 >names
    sign() { openssl x509 -req -in request -CA ca.pem -CAkey ca.key -set_serial 1 -extfile names \"$@\"; }
    sign -days 2 -out good.pem
    sign -days -1 -out expired.pem
    openssl x509 -req -in request -signkey key.pem -days 2 -extfile names -out own.pem";

struct Certificates(TempDir);

impl Certificates {
    fn new() -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let made = Command::new("sh")
            .args(["-ec", MAKE])
            .current_dir(dir.path())
            .stdin(Stdio::null())
            .output()
            .unwrap();
        if made.status.code() == Some(127) {
            eprintln!("openssl is not installed; what needs it is left out");
            return None;
        }
        assert!(made.status.success(), "{made:?}");
        // Whole answers, as `openssl s_server -HTTP` sends them.
        let head = format!(
            "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
            good().content.len()
        );
        let image = [head.as_bytes(), good().content].concat();
        fs::write(dir.path().join("image"), image).unwrap();
        let away = "HTTP/1.0 302 Found\r\nLocation: http://127.0.0.1/image\r\n\r\n";
        fs::write(dir.path().join("away"), away).unwrap();
        Some(Self(dir))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A server with one of the certificates.
    fn serve(&self, certificate: &str) -> Server {
        let free = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = free.local_addr().unwrap().port();
        drop(free);
        let process = Command::new("openssl")
            .args(["s_server", "-quiet", "-HTTP", "-key", "key.pem"])
            .args(["-cert", certificate, "-accept"])
            .arg(format!("127.0.0.1:{port}"))
            .current_dir(self.0.path())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        for _ in 0..200 {
            if TcpStream::connect(("127.0.0.1", port)).is_ok() {
                break;
            }
            sleep(Duration::from_millis(50));
        }
        Server { process, port }
    }
}

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn url(&self, host: &str, path: &str) -> Url {
        Url::parse(&format!("https://{host}:{}/{path}", self.port)).unwrap()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

#[test]
fn a_server_that_no_authority_of_the_host_has_signed_is_refused() {
    let Some(certificates) = Certificates::new() else {
        return;
    };
    for (certificate, why) in [
        ("good.pem", "unable to get local issuer certificate"),
        ("own.pem", "self-signed certificate"),
    ] {
        let server = certificates.serve(certificate);
        let dir = tempfile::tempdir().unwrap();
        let error = fetch(dir.path(), &server.url("127.0.0.1", "image")).unwrap_err();
        let wanted = format!(
            "cannot fetch https://127.0.0.1:{}/image: the certificate of the server is not trusted: SSL certificate \
             problem: {why}; where an authority",
            server.port
        );
        assert!(error.starts_with(&wanted), "{error}");
    }
}

#[test]
fn a_connection_that_is_cut_while_it_is_encrypted_is_tried_again() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    let asked = Arc::new(AtomicUsize::new(0));
    let counted = Arc::clone(&asked);
    thread::spawn(move || {
        for stream in listener.incoming() {
            // It is closed, with what has come unread, which is a reset.
            drop(stream.unwrap());
            counted.fetch_add(1, Ordering::Relaxed);
        }
    });
    let dir = tempfile::tempdir().unwrap();
    let url = Url::parse(&format!("https://127.0.0.1:{port}/image")).unwrap();
    let error = fetch(dir.path(), &url).unwrap_err();
    let tries = asked.load(Ordering::Relaxed);
    assert!(error.contains(&format!("after {tries} tries")), "{error}");
    assert!(tries > 1, "{tries}");
}

/// What becomes of a fetch where the authority is one of the host's: in a mount namespace, so that it is not.
fn fetch_trusting(authority: &Path, test: &str, url: &Url) -> Option<String> {
    let dir = tempfile::tempdir().unwrap();
    let process = child::fetching(test, dir.path(), url, &digest(good().content));
    let mount = format!("mount --bind \"$0\" {AUTHORITIES}");
    child::said_with_mount(&mount, authority, &process)
}

#[test]
fn a_server_that_an_authority_of_the_host_has_signed_is_asked() {
    const THIS: &str = "tls::a_server_that_an_authority_of_the_host_has_signed_is_asked";
    if child::is_done() {
        return;
    }
    let Some(certificates) = Certificates::new() else {
        return;
    };
    for (certificate, host, path, wanted) in [
        ("good.pem", "127.0.0.1", "image", child::DONE),
        (
            "expired.pem",
            "127.0.0.1",
            "image",
            "certificate has expired",
        ),
        ("good.pem", "localhost", "image", "matches target host name"),
        // What is asked for over https does not come over http.
        ("good.pem", "127.0.0.1", "away", "\"http\""),
    ] {
        let server = certificates.serve(certificate);
        let url = server.url(host, path);
        let Some(said) = fetch_trusting(&certificates.path("ca.pem"), THIS, &url) else {
            return;
        };
        assert!(said.contains(wanted), "{certificate} {path}: {said}");
    }
}
