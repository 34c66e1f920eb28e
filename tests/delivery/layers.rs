//! Images in layers: what the real skopeo(1) brings of archives and registries.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use imgbased_helper::delivery::oci::layout::Digest;
use imgbased_helper::delivery::oci::reference::Reference;
use imgbased_helper::delivery::oci::{Found, Skopeo, Store};
use imgbased_helper::delivery::spool::Spool;
use imgbased_helper::sys::interrupt::Interrupt;

fn run(program: &str, args: &[&str]) {
    let done = Command::new(program).args(args).output().unwrap();
    assert!(done.status.success(), "{program} {args:?}: {done:?}");
}

/// An image in the OCI image layout at `dir`, with these texts as the files of its layers.
fn image(dir: &Path, architecture: &str, texts: &[&str]) {
    fs::create_dir_all(dir.join("blobs/sha256")).unwrap();
    let put = |kind: &str, content: &[u8]| {
        let digest = Digest::of(content);
        fs::write(dir.join(digest.path()), content).unwrap();
        let kind = format!("application/vnd.oci.image.{kind}");
        format!(
            r#"{{"mediaType":"{kind}","digest":"{digest}","size":{}}}"#,
            content.len()
        )
    };
    let (mut layers, mut diffs) = (Vec::new(), Vec::new());
    for (at, text) in texts.iter().enumerate() {
        let (name, tar) = (format!("file{at}"), dir.join("tar"));
        fs::write(dir.join(&name), text).unwrap();
        let (of, to) = (dir.to_str().unwrap(), tar.to_str().unwrap());
        run("tar", &["-C", of, "--mtime=@0", "-cf", to, &name]);
        let plain = fs::read(&tar).unwrap();
        diffs.push(format!(r#""{}""#, Digest::of(&plain)));
        run("gzip", &["--no-name", "--force", to]);
        let packed = fs::read(dir.join("tar.gz")).unwrap();
        layers.push(put("layer.v1.tar+gzip", &packed));
    }
    // As Docker writes it: what is made of it for OCI has another digest.
    let config = format!(
        r#"{{"architecture":"{architecture}","config":{{}},"docker_version":"27","os":"linux","rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
        diffs.join(",")
    );
    let config = put("config.v1+json", config.as_bytes());
    let layers = layers.join(",");
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"application/vnd.oci.image.manifest.v1+json","config":{config},"layers":[{layers}]}}"#
    );
    let manifest = put("manifest.v1+json", manifest.as_bytes());
    let index = format!(r#"{{"schemaVersion":2,"manifests":[{manifest}]}}"#);
    fs::write(dir.join("index.json"), index).unwrap();
    let marker = r#"{"imageLayoutVersion":"1.0.0"}"#;
    fs::write(dir.join("oci-layout"), marker).unwrap();
}

const HOST: &str = if cfg!(target_arch = "x86_64") {
    "amd64"
} else {
    "arm64"
};

fn skopeo() -> Skopeo {
    Skopeo {
        proxy: None,
        stall: 60,
        interrupt: Interrupt::default(),
    }
}

fn find(text: &str) -> anyhow::Result<Found> {
    Found::find(&Reference::parse(text)?, &skopeo())
}

/// The paths of the layers that an image gets in the store of a spool.
fn fetched(text: &str, spool: &Spool) -> anyhow::Result<Vec<PathBuf>> {
    let layers = find(text)?.fetch(&skopeo(), &Store::open(spool)?)?;
    for layer in &layers {
        let content = fs::read(&layer.path).unwrap();
        assert_eq!(Digest::of(&content), layer.digest, "{text}");
        assert_eq!(content.len() as u64, layer.size, "{text}");
    }
    Ok(layers.into_iter().map(|layer| layer.path).collect())
}

#[test]
fn an_archive_is_brought_with_the_layers_that_are_not_there() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    image(&dir.path().join("one"), HOST, &["common", "one"]);
    image(&dir.path().join("two"), HOST, &["common", "two"]);
    let copy = |from: &str, to: &str| run("skopeo", &["copy", "--quiet", from, to]);
    let spool = Spool::at(&dir.path().join("spool"));
    let mut of_each = Vec::new();
    for name in ["one", "two"] {
        let archive = format!("oci-archive:{}", at(&format!("{name}.tar")));
        copy(&format!("oci:{}", at(name)), &archive);
        of_each.push(fetched(&archive, &spool).unwrap());
        // As it is, it has the same digest.
        let here = find(&format!("oci:{}", at(name))).unwrap();
        assert_eq!(here.digest, find(&archive).unwrap().digest);
        assert_eq!(here.layers().unwrap().unwrap().len(), 2);
    }
    assert_eq!(of_each[0][0], of_each[1][0]);
    assert_ne!(of_each[0][1], of_each[1][1]);

    // What Docker writes down has other digests: its layers are not packed.
    let docker = format!("docker-archive:{}:x:v1", at("docker.tar"));
    copy(&format!("oci:{}", at("one")), &docker);
    let of_docker = fetched(&docker, &spool).unwrap();
    assert_ne!(of_docker, of_each[0]);
    let flat = format!("dir:{}", at("flat"));
    copy(&format!("oci:{}", at("one")), &flat);
    assert_eq!(find(&flat).unwrap().layers().unwrap().unwrap().len(), 2);

    // What was damaged meanwhile comes again.
    fs::write(&of_each[1][1], "damaged").unwrap();
    fetched(&format!("oci-archive:{}", at("two.tar")), &spool).unwrap();
}

#[test]
fn what_is_not_there_or_for_another_processor_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).display().to_string();
    image(&dir.path().join("other"), "riscv64", &["x"]);
    fs::write(at("text"), "text").unwrap();
    run(
        "skopeo",
        &[
            "copy",
            "--quiet",
            "--override-arch=riscv64",
            &format!("oci:{}", at("other")),
            &format!("oci-archive:{}", at("other.tar")),
        ],
    );
    let spool = Spool::at(&dir.path().join("spool"));
    for (text, why) in [
        (format!("oci:{}", at("none")), "cannot open"),
        (format!("oci:{}:v1", at("other")), "no image of the tag"),
        (format!("oci-archive:{}", at("text")), "cannot look at"),
        (format!("docker-archive:{}", at("none")), "cannot look at"),
        // Nobody listens there.
        (
            "docker://127.0.0.1:1/x:v1".to_owned(),
            "cannot look at docker://127.0.0.1:1/x:v1",
        ),
        (
            format!("oci-archive:{}", at("other.tar")),
            "it is for linux/riscv64",
        ),
    ] {
        let error = format!("{:#}", fetched(&text, &spool).unwrap_err());
        assert!(error.contains(why), "{text}: {error}");
    }
    let error = find(&format!("oci:{}", at("other")))
        .unwrap()
        .layers()
        .unwrap_err();
    assert!(
        format!("{error:#}").contains("it is for linux/riscv64"),
        "{error:#}"
    );
}
