use super::*;
use crate::admin::cli::command;
use crate::admin::imgbase::HELP;

/// What a line means on a host where an image has left this name, and where there is a file of that name.
fn parsed(line: &str, nvr: Option<&str>) -> Result<Call> {
    let args: Vec<String> = line.split_whitespace().map(str::to_owned).collect();
    let is_there = |path: &str| path == "a-file-1";
    let facts = Facts {
        nvr,
        is_there: &is_there,
    };
    parse(&args, &facts)
}

/// The same as one line: the words of a verb, or what is shown.
fn meaning_of(line: &str) -> String {
    match parsed(line, None).unwrap().meaning {
        Meaning::Verb(words) => words.join(" "),
        Meaning::Show(what) => format!("{what:?}"),
        other => format!("{other:?}"),
    }
}

const FORMS: &[(&str, &str)] = &[
    // As the first versions had them.
    ("layout --init", "layout init --from /"),
    ("layout", "Tree"),
    (
        "base --add --size 1G rootfs.img",
        "base add rootfs.img --size 1G",
    ),
    ("base --latest", "base latest"),
    ("layer --add", "AddLayer"),
    ("--debug layer --add", "AddLayer"),
    ("--debug --dry layer --add", "AddLayer"),
    (
        "layout --init --size 10G /dev/sdb /dev/sdc",
        "layout init --device /dev/sdb --device /dev/sdc --size 10G",
    ),
    (
        "layout --init --size 10240 /dev/sdb",
        "layout init --device /dev/sdb --size 10240M",
    ),
    ("layout --free-space", "FreeSpace(1048576)"),
    ("layout --free-space --units g", "FreeSpace(1073741824)"),
    ("layout --free-space --units=b", "FreeSpace(1)"),
    ("layout --free-space --units M", "FreeSpace(1000000)"),
    ("base --add --size 1G", "base add /dev/stdin --size 1G"),
    (
        "base --add --size 1024 -",
        "base add /dev/stdin --size 1024M",
    ),
    ("base --of-layer Base-0.1", "BaseOf(\"Base-0.1\")"),
    ("layer --latest", "layer latest"),
    ("layer --current", "layer current"),
    // As later ones had them.
    ("layout --bases", "Bases"),
    ("layout --layers", "Layers"),
    (
        "layout --init --from onn/root",
        "layout init --from onn/root",
    ),
    (
        "layout --init-nvr node-4-1",
        "layout init --from / --name node-4-1",
    ),
    (
        "layout --init --from / --init-nvr node-4-1",
        "layout init --from / --name node-4-1",
    ),
    (
        "base --add node-4-1 --size 5G image",
        "base add image --name node-4-1 --size 5G",
    ),
    (
        "base --add node-4-1 --size 5G",
        "base add /dev/stdin --name node-4-1 --size 5G",
    ),
    (
        "base --add a-file-1 --size 5G",
        "base add a-file-1 --size 5G",
    ),
    ("base --add ./node-4-1", "base add ./node-4-1"),
    ("base --remove node-4-1", "base remove --yes node-4-1"),
    ("layer --add node-4-1", "layer add node-4-1"),
    ("layer --add node-4-1+1", "layer add node-4-1+1"),
    ("layer --volume-path node-4-1+1", "Device(\"node-4-1+1\")"),
    ("layer --remove node-4-1+1", "layer remove node-4-1+1"),
    ("w", "Current"),
    ("check", "Check"),
    ("motd", "Motd"),
    ("update image", "update image"),
    ("--debug update --format liveimg image", "update image"),
    ("rollback", "rollback"),
    ("rollback --to", "rollback"),
    ("rollback --to node-4-1+1", "rollback --to node-4-1+1"),
    ("boot --list", "boot list"),
    ("boot --get-default", "Default"),
    ("boot --set-default node-4-1+1", "boot default node-4-1+1"),
    ("boot --setup", "boot refresh"),
    ("boot --setup /", "boot refresh"),
    ("--experimental volume --list", "Volumes"),
    ("volume --list", "Volumes"),
    (
        "--experimental volume --create /var 4G",
        "volume add /var --size 4G",
    ),
    ("volume --create /var 4096", "volume add /var --size 4096M"),
    ("volume --remove /var", "volume remove /var --delete"),
    ("volume --detach /var", "volume remove /var"),
    ("--experimental diff", "diff"),
    (
        "diff -m tree node-4-1 node-4-1+1",
        "diff node-4-1 node-4-1+1",
    ),
    (
        "pkg --diff node-4-1 node-4-1+1",
        "Packages([\"node-4-1\", \"node-4-1+1\"])",
    ),
    ("--experimental recover --list", "check"),
    ("recover", "check --repair"),
    ("recover --force", "check --repair"),
    ("service --start", "Nothing"),
    ("service --stop", "Nothing"),
    ("--layerformat Image-%d.%d --stream Image layout", "Tree"),
    ("--version", "Version"),
    ("-h", "Help"),
    ("layout --help", "Help"),
];

#[test]
fn each_form_means_what_it_did() {
    for (line, expected) in FORMS {
        assert_eq!(meaning_of(line), *expected, "imgbase {line}");
    }
}

#[test]
fn each_verb_that_is_meant_is_there_and_takes_those_words() {
    for (line, _) in FORMS {
        let Meaning::Verb(words) = parsed(line, None).unwrap().meaning else {
            continue;
        };
        let words = ["imgbased-helper".to_owned()].into_iter().chain(words);
        command()
            .try_get_matches_from(words)
            .unwrap_or_else(|error| panic!("imgbase {line}: {error}"));
    }
}

#[test]
fn global_options_go_before_and_after_the_verb() {
    for line in [
        "--debug --dry --vg onn --thinpool pool00 layout",
        "layout --vg=onn --dry --thinpool=pool00 --debug",
    ] {
        let call = parsed(line, None).unwrap();
        assert_eq!(
            (
                call.vg.as_deref(),
                call.pool.as_deref(),
                call.dry_run,
                call.verbose
            ),
            (Some("onn"), Some("pool00"), true, true),
            "{line}"
        );
    }
    let call = parsed("layout", None).unwrap();
    assert_eq!(
        (call.vg, call.pool, call.dry_run, call.verbose),
        (None, None, false, false)
    );
}

#[test]
fn what_runs_is_taken_over_under_the_name_of_its_image() {
    let meaning = |line| parsed(line, Some("node-4-2")).unwrap().meaning;
    let named = |name| verb_of(&["layout", "init", "--from", "/", "--name", name]);
    assert_eq!(meaning("layout --init"), named("node-4-2"));
    assert_eq!(meaning("layout --init-nvr node-4-3"), named("node-4-3"));
    assert_eq!(
        meaning("layout --init /dev/sdb"),
        verb_of(&["layout", "init", "--device", "/dev/sdb"])
    );
}

#[test]
fn what_means_nothing_here_is_refused_on_one_line_that_says_what_to_do() {
    for (line, expected) in [
        ("", "a verb is needed"),
        ("frobnicate", "no `imgbase frobnicate`; `imgbase --help`"),
        ("remote add x http://y", "`imgbased-helper update IMAGE`"),
        ("remote list", "`imgbased-helper update IMAGE`"),
        ("openscap --list", "oscap(8)"),
        ("--experimental nspawn node-4-1+1", "systemd-nspawn(1)"),
        (
            "factory-diff --config",
            "`imgbased-helper diff --path /etc`",
        ),
        (
            "image-build --postprocess",
            "`imgbased-helper base add IMAGE`",
        ),
        (
            "image-introspect --metadata x",
            "`imgbased-helper update --check IMAGE`",
        ),
        ("layout --frob", "`imgbase layout` has no option --frob"),
        ("--frob", "`imgbase` has no option --frob"),
        ("layout x", "does not take \"x\" as well"),
        (
            "layout --bases --layers",
            "one of --bases, --layers, --free-space is needed",
        ),
        ("layout --bases=x", "--bases takes no value"),
        ("layout --free-space --units h", "--units h is none of"),
        ("layout --free-space --units mb", "--units mb is none of"),
        ("layout --from onn/root", "--from needs --init"),
        (
            "layout --init --without-vg --size 5G",
            "there is no --without-vg here",
        ),
        ("layout --init --size 5G", "no disk is named"),
        (
            "layout --init --from / /dev/sdb",
            "disks for a new group are named as well",
        ),
        ("base", "one of --add, --latest"),
        ("base --add --latest", "one of --add and --latest"),
        ("base --add a b c", "does not take \"c\" as well"),
        ("base --add --size", "--size takes a value"),
        ("base --of-layer", "--of-layer takes a value"),
        ("layer", "one of --add, --latest"),
        ("layer --latest x", "does not take \"x\" as well"),
        ("motd --update", "/run/motd.d"),
        ("update", "an image is needed"),
        ("update --format iso x", "there is no --format iso"),
        (
            "boot --remove-other-boot-entries",
            "`imgbased-helper boot repair`",
        ),
        ("boot --setup /mnt", "`imgbased-helper boot refresh NAME`"),
        ("boot", "one of --list"),
        ("volume --attach /var", "`imgbased-helper volume add PATH`"),
        ("volume --create /var", "--create takes two values"),
        ("diff node-4-1", "two bases or layers are needed"),
        (
            "diff -m content a b",
            "`imgbased-helper diff` names the files",
        ),
        ("pkg --diff a", "takes two bases or layers"),
        ("service", "one of --start, --stop is needed"),
        (
            "--layerformat Node-%d.%d layout",
            "--layerformat Node-%d.%d is not possible",
        ),
        ("--stream Other layout", "--stream Other is not possible"),
    ] {
        let error = parsed(line, None).unwrap_err().to_string();
        assert!(error.contains(expected), "imgbase {line}: {error}");
        assert!(!error.contains('\n'), "{error}");
    }
}

#[test]
fn the_help_has_each_verb_and_each_option() {
    for (verb, options) in VERBS {
        assert!(HELP.contains(&format!("imgbase {verb}")), "{verb}");
        let text: Vec<&str> = HELP
            .lines()
            .filter(|line| line.contains(&format!("imgbase {verb}")))
            .collect();
        for (option, ..) in options {
            // What is refused is below the forms.
            let is_refused = [
                "--without-vg",
                "--update",
                "--remove-other-boot-entries",
                "--attach",
                "-m",
                "--mode",
            ];
            if is_refused.contains(option) {
                continue;
            }
            assert!(
                text.iter().any(|line| line.contains(option)),
                "{verb} {option}"
            );
        }
    }
    for (option, ..) in GLOBAL {
        assert!(HELP.contains(option), "{option}");
    }
    for (gone, _) in GONE {
        assert!(HELP.contains(gone), "{gone}");
    }
    assert!(HELP.lines().all(|line| line.len() <= 100));
}
