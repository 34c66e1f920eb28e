//! Which signatures count, with the real gpg, gpgv and minisign: the keys are made here.

use std::fs;
use std::io::Write;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use imgbased_helper::delivery::signature::{Keys, Kind};
use imgbased_helper::sys::interrupt::Interrupt;
use tempfile::TempDir;

const LIST: &[u8] = b"e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  x-1.raw\n";
const OTHER: &[u8] = b"0000c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855  x-1.raw\n";

fn is_installed(program: &str) -> bool {
    let found = Command::new(program)
        .arg("--version")
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    if found.is_err() {
        eprintln!("{program} is not installed; what needs it is left out");
    }
    found.is_ok()
}

fn run(command: &mut Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().unwrap();
    assert!(output.status.success(), "{command:?}: {output:?}");
    output.stdout
}

/// Keys of `OpenPGP`, in a home of their own.
struct Gpg(TempDir);

impl Gpg {
    fn new() -> Option<Self> {
        if !is_installed("gpg") || !is_installed("gpgv") {
            return None;
        }
        let home = Self(tempfile::tempdir().unwrap());
        fs::set_permissions(home.0.path(), fs::Permissions::from_mode(0o700)).unwrap();
        Some(home)
    }

    fn gpg(&self, options: &[&str]) -> Vec<u8> {
        let mut gpg = Command::new("gpg");
        gpg.args(["--homedir", self.path("").to_str().unwrap()]);
        gpg.args([
            "--batch",
            "--yes",
            "--quiet",
            "--pinentry-mode",
            "loopback",
            "--passphrase",
            "",
        ]);
        run(gpg.args(options))
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// A key that is made at this time, and expires so long after that.
    fn make(&self, name: &str, algorithm: &str, at: &str, expires: &str) {
        let time = format!("--faked-system-time={at}");
        self.gpg(&[&time, "--quick-gen-key", name, algorithm, "sign", expires]);
    }

    fn export(&self, options: &[&str], names: &[&str]) -> Vec<u8> {
        self.gpg(&[options, &["--export"], names].concat())
    }

    /// A signature by these keys.
    fn sign(&self, data: &[u8], names: &[&str], options: &[&str]) -> Vec<u8> {
        let file = self.path("data");
        fs::write(&file, data).unwrap();
        let users: Vec<&str> = names
            .iter()
            .flat_map(|name| ["--local-user", name])
            .collect();
        let to = ["--output", "-", "--detach-sign", file.to_str().unwrap()];
        self.gpg(&[&users, options, &to].concat())
    }

    /// Gives a key another one to sign with, and returns what that is called.
    fn add_subkey(&self, of: &str, at: &str, expires: &str) -> String {
        let fingerprints = || {
            let listed = self.gpg(&["--with-colons", "--list-keys", of]);
            let listed = String::from_utf8(listed).unwrap();
            let lines = listed
                .lines()
                .filter_map(|line| line.strip_prefix("fpr:::::::::"));
            let found = lines.map(|line| line.trim_end_matches(':').to_owned());
            found.collect::<Vec<_>>()
        };
        let before = fingerprints();
        let time = format!("--faked-system-time={at}");
        self.gpg(&[
            &time,
            "--quick-add-key",
            &before[0],
            "ed25519",
            "sign",
            expires,
        ]);
        let new = fingerprints().into_iter().find(|key| !before.contains(key));
        format!("{}!", new.unwrap())
    }

    fn revoke_subkey(&self, of: &str, subkey: &str) {
        let home = self.path("");
        let mut gpg = Command::new("gpg")
            .arg("--homedir")
            .arg(home)
            .args(["--quiet", "--no-tty", "--pinentry-mode", "loopback"])
            .args(["--passphrase", "", "--command-fd", "0", "--edit-key", of])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap();
        let subkey = subkey.trim_end_matches('!');
        // Whether really, for no reason, with no words, and whether that is right.
        let said = format!("key {subkey}\nrevkey\ny\n0\n\ny\nsave\n");
        gpg.stdin
            .take()
            .unwrap()
            .write_all(said.as_bytes())
            .unwrap();
        assert!(gpg.wait().unwrap().success());
    }

    fn revoke(&self, name: &str) {
        let listed = self.gpg(&["--with-colons", "--list-keys", name]);
        let listed = String::from_utf8(listed).unwrap();
        let fingerprint = listed
            .lines()
            .find_map(|line| line.strip_prefix("fpr:::::::::"))
            .unwrap();
        let fingerprint = fingerprint.trim_end_matches(':');
        let certificate = self.path(&format!("openpgp-revocs.d/{fingerprint}.rev"));
        let text = fs::read_to_string(certificate)
            .unwrap()
            .replace(":-----BEGIN", "-----BEGIN");
        let file = self.path("revocation");
        fs::write(&file, text).unwrap();
        self.gpg(&["--import", file.to_str().unwrap()]);
    }
}

impl Drop for Gpg {
    fn drop(&mut self) {
        let home = self.path("");
        let _ = Command::new("gpgconf")
            .arg("--homedir")
            .arg(home)
            .args(["--kill", "all"])
            .status();
    }
}

/// A key of minisign.
pub struct Minisign(TempDir);

impl Minisign {
    pub fn new() -> Option<Self> {
        // Its -v ends with success, as --version does not.
        let found = Command::new("minisign")
            .arg("-v")
            .stdout(Stdio::null())
            .status();
        if found.is_err() {
            eprintln!("minisign is not installed; what needs it is left out");
            return None;
        }
        let dir = Self(tempfile::tempdir().unwrap());
        let (public, secret) = (dir.path("key.pub"), dir.path("key"));
        run(Command::new("minisign")
            .arg("-GWfp")
            .arg(public)
            .arg("-s")
            .arg(secret));
        Some(dir)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The file with the public key.
    pub fn key(&self) -> Vec<u8> {
        fs::read(self.path("key.pub")).unwrap()
    }

    pub fn sign(&self, data: &[u8], options: &[&str]) -> Vec<u8> {
        let (file, signature) = (self.path("data"), self.path("signature"));
        fs::write(&file, data).unwrap();
        run(Command::new("minisign")
            .args(options)
            .arg("-Ss")
            .arg(self.path("key"))
            .arg("-m")
            .arg(file)
            .arg("-x")
            .arg(&signature));
        fs::read(signature).unwrap()
    }
}

/// The keys of a host: names of files and what they hold.
type KeyFiles = Vec<(&'static str, Vec<u8>)>;

fn directory(root: &Path) -> PathBuf {
    let dir = root.join("etc/imgbased/keys.d");
    fs::create_dir_all(&dir).unwrap();
    dir
}

/// Who has signed, as a host with these keys sees it.
fn verify(keys: &KeyFiles, kind: Kind, data: &[u8], signature: &[u8]) -> Result<String, String> {
    let root = tempfile::tempdir().unwrap();
    let dir = directory(root.path());
    for (name, content) in keys {
        fs::write(dir.join(name), content).unwrap();
    }
    verify_at(root.path(), kind, data, signature)
}

fn verify_at(root: &Path, kind: Kind, data: &[u8], signature: &[u8]) -> Result<String, String> {
    let signer =
        Keys::load(root).and_then(|keys| keys.verify(kind, data, signature, &Interrupt::default()));
    signer
        .map(|signer| signer.key)
        .map_err(|error| format!("{error:#}"))
}

/// A case: its name, who has signed or why that is refused, and why it should be, if so.
type Case = (
    &'static str,
    Result<String, String>,
    Result<(), &'static str>,
);

fn check(cases: Vec<Case>) {
    for (name, found, wanted) in cases {
        match (found, wanted) {
            (Ok(_), Ok(())) => {}
            (Err(error), Err(why)) => assert!(error.contains(why), "{name}: {error}"),
            (found, _) => panic!("{name}: {found:?}"),
        }
    }
}

const PAST: &str = "20200101T000000!";
const NOW: &str = "20260101T000000!";
const FUTURE: &str = "20400101T000000!";

#[test]
#[allow(clippy::too_many_lines, reason = "it is a table")]
fn openpgp_signatures_count_if_all_of_them_are_good() {
    let Some(gpg) = Gpg::new() else {
        return;
    };
    for (name, algorithm, at, expires) in [
        ("good", "ed25519", NOW, "never"),
        ("second", "ed25519", NOW, "never"),
        ("rsa", "rsa2048", NOW, "never"),
        ("old", "ed25519", PAST, "never"),
        ("expired", "ed25519", PAST, "1y"),
        ("revoked", "ed25519", NOW, "never"),
        ("unknown", "ed25519", NOW, "never"),
        ("parent", "ed25519", PAST, "never"),
        ("late", "ed25519", FUTURE, "never"),
    ] {
        gpg.make(name, algorithm, at, expires);
    }
    let [subkey, other_subkey] = [PAST; 2].map(|at| gpg.add_subkey("parent", at, "never"));
    let old_subkey = gpg.add_subkey("parent", PAST, "1y");
    let by_revoked = gpg.sign(LIST, &["revoked"], &[]);
    let by_revoked_subkey = gpg.sign(LIST, &[&other_subkey], &[]);
    gpg.revoke("revoked");
    gpg.revoke_subkey("parent", &other_subkey);
    let ring = |names: &[&str]| gpg.export(&[], names);
    let all = ring(&[
        "good", "second", "rsa", "old", "expired", "revoked", "parent", "late",
    ]);
    let keys = || vec![("a.gpg", all.clone())];
    let good = gpg.sign(LIST, &["good"], &[]);
    let of_other = gpg.sign(OTHER, &["good"], &[]);
    let second_of_other = gpg.sign(OTHER, &["second"], &[]);
    let in_past = format!("--faked-system-time={PAST}");
    let in_future = format!("--faked-system-time={FUTURE}");
    let with = |keys: KeyFiles, signature: &[u8]| verify(&keys, Kind::Gpg, LIST, signature);
    let by = |names: &[&str], options: &[&str]| with(keys(), &gpg.sign(LIST, names, options));
    let both = |a: &[u8], b: &[u8]| with(keys(), &[a, b].concat());
    let [of_list, of_another] = [LIST, OTHER].map(|data| gpg.sign(data, &["good"], &["--armor"]));
    // With the list in it, or with 50 MB of nothing.
    let [message, bomb] = [LIST.to_vec(), vec![0; 50_000_000]].map(|content| {
        let file = gpg.path("data");
        fs::write(&file, content).unwrap();
        let options = ["--local-user", "good", "--compress-algo", "zlib"];
        let to = ["--output", "-", "--sign", file.to_str().unwrap()];
        gpg.gpg(&[&options[..], &to].concat())
    });
    let armoured = String::from_utf8(gpg.export(&["--armor"], &["good"])).unwrap();
    let mut flipped = good.clone();
    *flipped.last_mut().unwrap() ^= 1;
    let mut damaged = all.clone();
    damaged.truncate(all.len() / 2 + 7);
    let keybox = fs::read(gpg.path("pubring.kbx")).unwrap();
    let cleartext = {
        let file = gpg.path("data");
        fs::write(&file, LIST).unwrap();
        gpg.gpg(&[
            "--local-user",
            "good",
            "--output",
            "-",
            "--clear-sign",
            file.to_str().unwrap(),
        ])
    };
    check(vec![
        ("good", with(keys(), &good), Ok(())),
        ("armoured signature", by(&["good"], &["--armor"]), Ok(())),
        (
            "RSA and SHA-512",
            by(&["rsa"], &["--digest-algo", "SHA512"]),
            Ok(()),
        ),
        (
            "RSA and SHA-256",
            by(&["rsa"], &["--digest-algo", "SHA256"]),
            Ok(()),
        ),
        ("text mode", by(&["good"], &["--textmode"]), Ok(())),
        ("two keys", by(&["good", "second"], &[]), Ok(())),
        (
            "two rings",
            with(
                vec![("a.gpg", ring(&["second"])), ("b.pgp", ring(&["good"]))],
                &good,
            ),
            Ok(()),
        ),
        ("keybox", with(vec![("a.kbx", keybox)], &good), Ok(())),
        ("old key that never expires", by(&["old"], &[]), Ok(())),
        (
            "expired key",
            by(&["expired"], &[&in_past]),
            Err("has expired"),
        ),
        (
            "expired subkey",
            by(&[&old_subkey], &[&in_past]),
            Err("has expired"),
        ),
        (
            "revoked subkey",
            with(keys(), &by_revoked_subkey),
            Err("was revoked"),
        ),
        ("subkey beside those", by(&[&subkey], &[]), Ok(())),
        (
            "key of the future",
            by(&["late"], &[&in_future]),
            Err("cannot be checked"),
        ),
        (
            "a critical note that nobody knows",
            by(&["good"], &["--sig-notation", "!odd@example.org=x"]),
            Err("not of this list"),
        ),
        (
            "expired signature",
            by(&["old"], &[&in_past, "--default-sig-expire", "1y"]),
            Err("has expired"),
        ),
        ("revoked key", with(keys(), &by_revoked), Err("was revoked")),
        (
            "unknown key",
            by(&["unknown"], &[]),
            Err("not among the keys"),
        ),
        (
            "SHA-1",
            by(&["rsa"], &["--digest-algo", "SHA1"]),
            Err("too weak"),
        ),
        (
            "RIPEMD-160",
            by(&["rsa"], &["--digest-algo", "RIPEMD160"]),
            Err("too weak"),
        ),
        (
            "MD5",
            by(
                &["rsa"],
                &["--digest-algo", "MD5", "--allow-weak-digest-algos"],
            ),
            Err("too weak"),
        ),
        (
            "another file",
            with(keys(), &of_other),
            Err("not of this list"),
        ),
        (
            "a list that was changed",
            verify(&keys(), Kind::Gpg, OTHER, &good),
            Err("not of this list"),
        ),
        (
            "an empty list",
            verify(&keys(), Kind::Gpg, b"", &good),
            Err("not of this list"),
        ),
        (
            "damaged signature",
            with(keys(), &flipped),
            Err("the signature"),
        ),
        (
            "half a signature",
            with(keys(), &good[..good.len() / 2]),
            Err(""),
        ),
        ("empty signature", with(keys(), b""), Err("is empty")),
        (
            "no signature",
            with(keys(), b"<html>not found</html>"),
            Err("is none"),
        ),
        ("a key as a signature", with(keys(), &all), Err("")),
        (
            "a signed message with the list",
            with(keys(), &message),
            Err(""),
        ),
        ("a bomb", with(keys(), &bomb), Err("")),
        ("clear text signature", with(keys(), &cleartext), Err("")),
        (
            "the second is of another file",
            both(&good, &second_of_other),
            Err("not of this list"),
        ),
        (
            "the first is of another file",
            both(&second_of_other, &good),
            Err("not of this list"),
        ),
        (
            "the second is of another file, both armoured",
            both(&of_list, &of_another),
            Err("not of this list"),
        ),
        (
            "the first is of another file, both armoured",
            both(&of_another, &of_list),
            Err("not of this list"),
        ),
        ("the same twice", both(&good, &good), Ok(())),
        (
            "the second is by an unknown key",
            by(&["good", "unknown"], &[]),
            Err("not among the keys"),
        ),
        (
            "the second is by an expired key",
            both(&good, &gpg.sign(LIST, &["expired"], &[&in_past])),
            Err("has expired"),
        ),
        (
            "the second is by a revoked key",
            both(&good, &by_revoked),
            Err("was revoked"),
        ),
        (
            "the second is weak",
            both(&good, &gpg.sign(LIST, &["rsa"], &["--digest-algo", "SHA1"])),
            Err("too weak"),
        ),
        (
            "the second is garbage",
            both(&good, b"\xff\xff garbage"),
            Err(""),
        ),
        (
            "empty ring",
            with(vec![("a.gpg", Vec::new())], &good),
            Err("the file is empty"),
        ),
        (
            "empty ring beside a good one",
            with(vec![("a.gpg", all.clone()), ("b.gpg", Vec::new())], &good),
            Err("empty"),
        ),
        (
            "armoured ring",
            with(vec![("a.gpg", armoured.clone().into())], &good),
            Err("gpg --dearmor"),
        ),
        (
            "armoured ring by its name",
            with(vec![("a.asc", armoured.into())], &good),
            Err("gpg --dearmor"),
        ),
        (
            "garbage as a ring",
            with(vec![("a.gpg", vec![7; 100])], &good),
            Err("no keyring"),
        ),
        (
            "a ring that was cut off",
            with(vec![("a.gpg", damaged)], &good),
            Err("damaged"),
        ),
        (
            "no ring",
            with(vec![("README", b"x".to_vec())], &good),
            Err(""),
        ),
        (
            "ring of another key",
            with(vec![("a.gpg", ring(&["second"]))], &good),
            Err("not among the keys"),
        ),
    ]);
}

#[test]
fn a_key_that_others_could_have_put_there_counts_for_nothing() {
    let Some(gpg) = Gpg::new() else {
        return;
    };
    gpg.make("good", "ed25519", NOW, "never");
    let (ring, signature) = (gpg.export(&[], &["good"]), gpg.sign(LIST, &["good"], &[]));
    let at = |change: &dyn Fn(&Path)| {
        let root = tempfile::tempdir().unwrap();
        let dir = directory(root.path());
        fs::write(dir.join("a.gpg"), &ring).unwrap();
        change(&dir);
        verify_at(root.path(), Kind::Gpg, LIST, &signature)
    };
    let mode =
        |path: PathBuf, mode| fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    let vendor = |dir: &Path| {
        let vendor = dir.join("../../../usr/lib/imgbased/keys.d");
        fs::create_dir_all(&vendor).unwrap();
        fs::rename(dir.join("a.gpg"), vendor.join("a.gpg")).unwrap();
    };
    check(vec![
        ("as it is", at(&|_| ()), Ok(())),
        ("of the vendor", at(&vendor), Ok(())),
        (
            "of the vendor, and off",
            at(&|dir| {
                vendor(dir);
                symlink("/dev/null", dir.join("a.gpg")).unwrap();
            }),
            Err(""),
        ),
        (
            "of the vendor, and replaced",
            at(&|dir| {
                vendor(dir);
                fs::write(dir.join("a.gpg"), "").unwrap();
            }),
            Err("the file is empty"),
        ),
        (
            "writable for others",
            at(&|dir| mode(dir.join("a.gpg"), 0o666)),
            Err("others than root"),
        ),
        (
            "in a directory for others",
            at(&|dir| mode(dir.to_owned(), 0o777)),
            Err("others than root"),
        ),
        (
            "a link to nowhere",
            at(&|dir| symlink("/nonexistent", dir.join("b.gpg")).unwrap()),
            Err("cannot be read"),
        ),
        (
            "a directory",
            at(&|dir| fs::create_dir(dir.join("b.gpg")).unwrap()),
            Err("are in no file"),
        ),
        (
            "a hidden file",
            at(&|dir| fs::write(dir.join(".b.gpg"), "").unwrap()),
            Ok(()),
        ),
    ]);
}

#[test]
fn minisign_signatures_count_if_a_key_of_the_host_has_made_them() {
    let (Some(minisign), Some(other)) = (Minisign::new(), Minisign::new()) else {
        return;
    };
    let keys = || vec![("a.pub", minisign.key())];
    let with = |keys: KeyFiles, signature: &[u8]| verify(&keys, Kind::Minisign, LIST, signature);
    let signed = |options: &[&str]| String::from_utf8(minisign.sign(LIST, options)).unwrap();
    let changed = |from: &str, to: &str| {
        let text = signed(&["-t", "the comment"]);
        assert!(text.contains(from));
        with(keys(), text.replace(from, to).as_bytes())
    };
    // The id of another key, which is the text after the first letters.
    let text = signed(&[]);
    let (line, wrong) = {
        let line = text.lines().nth(1).unwrap();
        (line.to_owned(), format!("{}AAAA{}", &line[..4], &line[8..]))
    };
    check(vec![
        ("good", with(keys(), text.as_bytes()), Ok(())),
        ("legacy", with(keys(), signed(&["-l"]).as_bytes()), Ok(())),
        (
            "prehashed",
            with(keys(), signed(&["-H"]).as_bytes()),
            Ok(()),
        ),
        (
            "the second key",
            with(
                vec![("a.pub", other.key()), ("b.pub", minisign.key())],
                text.as_bytes(),
            ),
            Ok(()),
        ),
        (
            "another untrusted comment",
            changed("untrusted comment: signature", "untrusted comment: what"),
            Ok(()),
        ),
        (
            "another trusted comment",
            changed("the comment", "a comment"),
            Err("not of this list"),
        ),
        (
            "another key",
            with(vec![("a.pub", other.key())], text.as_bytes()),
            Err("not among those"),
        ),
        (
            "wrong key id",
            with(keys(), text.replace(&line, &wrong).as_bytes()),
            Err("not among those"),
        ),
        (
            "another file",
            with(keys(), &minisign.sign(OTHER, &[])),
            Err("not of this list"),
        ),
        (
            "another file, legacy",
            with(keys(), &minisign.sign(OTHER, &["-l"])),
            Err("not of this list"),
        ),
        (
            "half of it",
            with(keys(), &text.as_bytes()[..text.len() / 2]),
            Err("is none"),
        ),
        ("empty", with(keys(), b""), Err("is empty")),
        ("no text", with(keys(), b"\xff\xfe"), Err("no text")),
        (
            "empty key",
            with(vec![("a.pub", Vec::new())], text.as_bytes()),
            Err("the file is empty"),
        ),
        (
            "no key",
            with(
                vec![("a.pub", b"ssh-ed25519 AAAA".to_vec())],
                text.as_bytes(),
            ),
            Err("no public key"),
        ),
        (
            "the wrong kind of key",
            with(vec![("a.pub", b"\x99\x01".to_vec())], text.as_bytes()),
            Err("no public key"),
        ),
    ]);
}
