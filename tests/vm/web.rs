//! A web server on the loopback of the machine that runs the tests. A machine with a network reaches it as
//! [`HOST`].

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use anyhow::{Context, Result};

/// What QEMU's own network calls the machine that it runs on.
pub const HOST: &str = "10.0.2.2";

/// Serves the files of a directory until the program ends. Returns the port.
pub fn serve(directory: &Path) -> Result<u16> {
    let listener = TcpListener::bind("127.0.0.1:0").context("listening on the loopback")?;
    let port = listener.local_addr().context("asking for the port")?.port();
    let directory = directory.to_owned();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let directory = directory.clone();
            // A machine that goes away while it reads has nobody to tell.
            thread::spawn(move || answer(stream, &directory));
        }
    });
    Ok(port)
}

/// Answers one request, and closes the connection.
fn answer(mut stream: TcpStream, directory: &Path) -> io::Result<()> {
    let mut lines = BufReader::new(stream.try_clone()?).lines();
    let request = lines.next().transpose()?.unwrap_or_default();
    while lines
        .next()
        .transpose()?
        .is_some_and(|line| !line.is_empty())
    {}
    let mut words = request.split(' ');
    let has_body = words.next() != Some("HEAD");
    let name = words.next().unwrap_or_default().trim_start_matches('/');
    let Ok(mut file) = File::open(directory.join(name)) else {
        return stream.write_all(
            b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\nConnection: close\r\n\r\n",
        );
    };
    let length = file.metadata()?.len();
    write!(
        stream,
        "HTTP/1.1 200 OK\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n"
    )?;
    if has_body {
        io::copy(&mut file, &mut stream)?;
    }
    Ok(())
}
