//! This program once more, as a process of its own that fetches a file.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use imgbased_helper::delivery::fetch::{Fetcher, Patience};
use imgbased_helper::delivery::spool::Spool;
use imgbased_helper::delivery::url::Url;

/// Where to keep what is fetched, from where, and its SHA-256, a line each.
const TOLD: &str = "IMGBASED_FETCH";
/// What the process says on its standard error when it is done.
pub const DONE: &str = "it is here";

/// The process. The test of this name has to call [`is_done`] at its beginning.
pub fn fetching(test: &str, spool: &Path, url: &Url, digest: &str) -> Command {
    let mut command = Command::new(env::current_exe().unwrap());
    command
        .args([test, "--exact", "--nocapture"])
        .env(TOLD, format!("{}\n{url}\n{digest}", spool.display()))
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// Fetches, if this is the process that was told to. Says what has become of it.
pub fn is_done() -> bool {
    let Ok(told) = env::var(TOLD) else {
        return false;
    };
    let [spool, url, digest] = told.lines().collect::<Vec<_>>()[..] else {
        panic!("{told}");
    };
    let fetcher = Fetcher {
        patience: Patience {
            stall: 2,
            tries: 2,
            pause: Duration::from_millis(20),
            ..Patience::default()
        },
        ..Fetcher::default()
    };
    let url = Url::parse(url).unwrap();
    match Spool::at(Path::new(spool)).fetch(&fetcher, &url, digest) {
        Ok(_) => eprintln!("{DONE}"),
        Err(error) => eprintln!("{error:#}"),
    }
    true
}
