//! A process that fetches and is killed leaves nothing but its spool, and the next one goes on from there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::thread::{self, sleep};
use std::time::{Duration, Instant};

use imgbased_helper::delivery::spool::{Fetched, Spool};

use crate::child;
use crate::fetch::{SIZE, digest, fetch, good};
use crate::server::{Server, Step};

const LIMIT: Duration = Duration::from_secs(30);

/// Waits until something is so.
fn wait_until(what: &str, is_so: impl Fn() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !is_so() {
        assert!(Instant::now() < deadline, "{what}");
        sleep(Duration::from_millis(5));
    }
}

/// The processes that a process has started.
fn children(of: u32) -> Vec<PathBuf> {
    let threads = fs::read_dir(format!("/proc/{of}/task"))
        .into_iter()
        .flatten();
    let lists = threads
        .flatten()
        .filter_map(|thread| fs::read_to_string(thread.path().join("children")).ok());
    let ids: String = lists.collect();
    ids.split_ascii_whitespace()
        .map(|id| Path::new("/proc").join(id))
        .collect()
}

/// Kills a process. What it has started ends by itself.
fn kill(mut process: Child) {
    let started = children(process.id());
    process.kill().unwrap();
    process.wait().unwrap();
    wait_until("curl ends", || {
        started.iter().all(|process| !process.exists())
    });
}

/// Fetches what is left of the file, and removes what `gc` removes: then nothing is there.
fn finish(dir: &Path, server: &Server) {
    let is_left = |path: PathBuf| Spool::at(dir).unused().contains(&path);
    for entry in fs::read_dir(dir).into_iter().flatten() {
        let path = entry.unwrap().path();
        assert!(is_left(path.clone()), "{}", path.display());
    }
    let fetched = fetch(dir, &server.url("/image")).unwrap();
    let Fetched::Here(path) = fetched else {
        panic!("{fetched:?}")
    };
    assert_eq!(fs::read(path).unwrap(), good().content);
    for path in Spool::at(dir).unused() {
        fs::remove_file(path).unwrap();
    }
    assert_eq!(fs::read_dir(dir).unwrap().count(), 0);
}

#[test]
fn at_each_tenth_a_kill_leaves_the_spool_and_the_next_process_goes_on() {
    const THIS: &str = "killed::at_each_tenth_a_kill_leaves_the_spool_and_the_next_process_goes_on";
    if child::is_done() {
        return;
    }
    // What is not killed needs a while to see that nobody reads it any more.
    thread::scope(|scope| {
        for tenth in 0..10 {
            scope.spawn(move || killed_at(THIS, SIZE * tenth / 10));
        }
    });
}

/// Has a process of this test killed when so many bytes are here.
fn killed_at(test: &str, have: usize) {
    let dir = tempfile::tempdir().unwrap();
    let server = Server::new(move |request| {
        if request.before > 0 {
            return good().answer(request);
        }
        let mut answer = good().cut(request, have);
        answer.push(Step::Wait(LIMIT));
        answer
    });
    let url = server.url("/image");
    let name = digest(good().content);
    let process = child::fetching(test, dir.path(), &url, &name)
        .spawn()
        .unwrap();
    let part = dir.path().join(format!("{name}.part"));
    wait_until("a part is here", || {
        !server.requests().is_empty() && part.metadata().map_or(0, |file| file.len()) == have as u64
    });
    kill(process);
    finish(dir.path(), &server);
    let requests = server.requests();
    let last = requests.last().unwrap();
    assert_eq!(last.from(), (have > 0).then_some(have));
    assert_eq!(last.header("if-range"), (have > 0).then_some("\"1\""));
}

#[test]
fn at_any_time_a_kill_leaves_the_spool_and_the_next_process_goes_on() {
    const THIS: &str = "killed::at_any_time_a_kill_leaves_the_spool_and_the_next_process_goes_on";
    if child::is_done() {
        return;
    }
    let mut random = fastrand::Rng::with_seed(1);
    for _ in 0..15 {
        let dir = tempfile::tempdir().unwrap();
        let server = Server::new(|request| {
            let mut answer = good().cut(request, 0);
            for piece in good().content[request.from().unwrap_or(0)..].chunks(SIZE / 30) {
                answer.push(Step::Send(piece.to_vec()));
                if request.before == 0 {
                    answer.push(Step::Wait(Duration::from_millis(5)));
                }
            }
            answer
        });
        let url = server.url("/image");
        let name = digest(good().content);
        let process = child::fetching(THIS, dir.path(), &url, &name)
            .spawn()
            .unwrap();
        sleep(Duration::from_millis(random.u64(0..400)));
        kill(process);
        finish(dir.path(), &server);
    }
}
