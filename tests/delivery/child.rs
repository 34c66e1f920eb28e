//! This program once more, as a process of its own that fetches a file.

use std::env;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use imgbased_helper::delivery::fetch::{Fetcher, Patience};
use imgbased_helper::delivery::spool::{Fetched, Spool};
use imgbased_helper::delivery::url::Url;

/// Where to keep what is fetched, from where, and its SHA-256, a line each.
const TOLD: &str = "IMGBASED_FETCH";
/// What the process says on its standard error when it is done.
pub const DONE: &str = "it is here";

/// The same where nothing can be kept.
pub const WITHOUT_ROOM: &str = "there is no room for it";

/// What the process says where this line for a shell has mounted something at `at` before, which only the process sees.
/// Nothing where that cannot be done.
pub fn said_with_mount(mount: &str, at: &Path, process: &Command) -> Option<String> {
    let mut shut_in = Command::new("unshare");
    if !nix::unistd::Uid::effective().is_root() {
        shut_in.args(["--user", "--map-root-user"]);
    }
    shut_in
        .args(["--mount", "sh", "-c"])
        .arg(format!("{mount} && exec \"$@\""))
        .arg(at)
        .arg(process.get_program())
        .args(process.get_args());
    for (name, value) in process.get_envs() {
        shut_in.env(name, value.unwrap_or_default());
    }
    let ran = shut_in.stdin(Stdio::null()).output().unwrap();
    // It was not even started.
    if ran.stdout.is_empty() {
        eprintln!("nothing can be mounted: {ran:?}; what needs it is left out");
        return None;
    }
    Some(String::from_utf8_lossy(&ran.stderr).into_owned())
}

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
    let spool = Spool::at(Path::new(spool));
    match spool.fetch(&fetcher, &url, digest) {
        Ok(Fetched::Here(_)) => eprintln!("{DONE}"),
        Ok(Fetched::TooLarge(..)) => {
            spool.keep_list(&digest[..16], &"a list").unwrap();
            eprintln!("{WITHOUT_ROOM}");
        }
        Err(error) => eprintln!("{error:#}"),
    }
    true
}
