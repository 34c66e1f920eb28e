//! What the command lines of imgbase mean here: of the first versions, and of those that oVirt Node had.

use anyhow::{Context as _, Result, bail, ensure};

use crate::model::name::is_base_of_imgbased;

/// The image of a base, where none is named.
pub const STDIN: &str = "/dev/stdin";

/// A command line of imgbase.
#[derive(Debug, PartialEq)]
pub struct Call {
    pub vg: Option<String>,
    pub pool: Option<String>,
    pub dry_run: bool,
    pub verbose: bool,
    pub meaning: Meaning,
}

#[derive(Debug, PartialEq)]
pub enum Meaning {
    /// What imgbased-helper does with these words.
    Verb(Vec<String>),
    /// `layer add` of the latest layer of the latest base, or of that base, if it has none.
    AddLayer,
    Show(What),
    /// It is done already, without being asked for.
    Nothing,
    Help,
    Version,
}

/// What is printed as imgbase did.
#[derive(Debug, PartialEq)]
pub enum What {
    Tree,
    Bases,
    Layers,
    /// In units of so many bytes.
    FreeSpace(u64),
    BaseOf(String),
    /// The device of a base or layer.
    Device(String),
    /// What runs.
    Current,
    Check,
    Motd,
    /// What boots.
    Default,
    /// The paths where volumes are mounted.
    Volumes,
    /// How the packages of two bases or layers differ.
    Packages([String; 2]),
}

/// What a command line depends on besides itself.
pub struct Facts<'a> {
    /// The name of the image that runs, as imgbased has left it there.
    pub nvr: Option<&'a str>,
    pub is_there: &'a dyn Fn(&str) -> bool,
}

/// Options with how many values each takes at least and at most.
type Options = &'static [(&'static str, usize, usize)];

const GLOBAL: Options = &[
    ("--debug", 0, 0),
    ("--dry", 0, 0),
    ("--experimental", 0, 0),
    ("--vg", 1, 1),
    ("--thinpool", 1, 1),
    ("--layerformat", 1, 1),
    ("--stream", 1, 1),
    ("--version", 0, 0),
    ("--help", 0, 0),
    ("-h", 0, 0),
];

/// The verbs of imgbase, with the options of each.
const VERBS: [(&str, Options); 14] = [
    (
        "layout",
        &[
            ("--bases", 0, 0),
            ("--layers", 0, 0),
            ("--free-space", 0, 0),
            ("--units", 1, 1),
            ("--init", 0, 0),
            ("--init-nvr", 1, 1),
            ("--from", 1, 1),
            ("--size", 1, 1),
            ("--without-vg", 0, 0),
        ],
    ),
    (
        "base",
        &[
            ("--add", 0, 0),
            ("--size", 1, 1),
            ("--latest", 0, 0),
            ("--of-layer", 1, 1),
            ("--remove", 1, 1),
        ],
    ),
    (
        "layer",
        &[
            ("--add", 0, 0),
            ("--latest", 0, 0),
            ("--current", 0, 0),
            ("--volume-path", 1, 1),
            ("--remove", 1, 1),
        ],
    ),
    ("w", &[]),
    ("check", &[]),
    ("motd", &[("--update", 0, 0)]),
    ("update", &[("--format", 1, 1)]),
    ("rollback", &[("--to", 0, 1)]),
    (
        "boot",
        &[
            ("--list", 0, 0),
            ("--get-default", 0, 0),
            ("--set-default", 1, 1),
            ("--setup", 0, 1),
            ("--remove-other-boot-entries", 0, 0),
        ],
    ),
    (
        "volume",
        &[
            ("--list", 0, 0),
            ("--create", 2, 2),
            ("--remove", 1, 1),
            ("--attach", 1, 1),
            ("--detach", 1, 1),
        ],
    ),
    ("diff", &[("--mode", 1, 1), ("-m", 1, 1)]),
    ("pkg", &[("--diff", 1, 1)]),
    ("recover", &[("--list", 0, 0), ("--force", 0, 0)]),
    ("service", &[("--start", 0, 0), ("--stop", 0, 0)]),
];

/// The verbs that mean nothing here, and what does their work.
const GONE: [(&str, &str); 6] = [
    ("remote", "`imgbased-helper update IMAGE` takes an image"),
    (
        "openscap",
        "oscap(8) does it, and a hook for os-upgraded can call that",
    ),
    (
        "nspawn",
        "systemd-nspawn(1) does it, with the device that `imgbased-helper layer path NAME` prints, mounted",
    ),
    (
        "factory-diff",
        "`imgbased-helper diff --path /etc` compares with the base",
    ),
    (
        "image-build",
        "any tool that makes a root filesystem does, and `imgbased-helper base add IMAGE` says what one lacks",
    ),
    (
        "image-introspect",
        "`imgbased-helper update --check IMAGE` tells what is in an image",
    ),
];

/// A command line, taken apart.
#[derive(Default)]
struct Given {
    verb: Option<&'static str>,
    options: Vec<(&'static str, Vec<String>)>,
    words: Vec<String>,
}

impl Given {
    /// Refuses what imgbase did not have.
    fn read(args: &[String]) -> Result<Self> {
        let mut given = Self::default();
        let mut known: Options = &[];
        let mut args = args.iter().map(String::as_str).peekable();
        while let Some(arg) = args.next() {
            if !is_option(arg) {
                if given.verb.is_some() {
                    given.words.push(arg.to_owned());
                } else {
                    let (verb, options) = find_verb(arg)?;
                    (given.verb, known) = (Some(verb), options);
                }
                continue;
            }
            let (name, value) = match arg.split_once('=') {
                Some((name, value)) => (name, Some(value)),
                None => (arg, None),
            };
            let mut options = known.iter().chain(GLOBAL);
            let option = options.find(|(option, ..)| *option == name);
            let &(name, least, most) = option.with_context(|| {
                let verb = given
                    .verb
                    .map_or_else(String::new, |verb| format!(" {verb}"));
                format!(
                    "`imgbase{verb}` has no option {name}; `imgbase --help` lists what there is"
                )
            })?;
            let mut values: Vec<String> = value.into_iter().map(str::to_owned).collect();
            while values.len() < most
                && let Some(value) = args.next_if(|next| !is_option(next))
            {
                values.push(value.to_owned());
            }
            ensure!(
                (least..=most).contains(&values.len()),
                "{name} takes {}; `imgbase --help` shows how",
                match most {
                    0 => "no value",
                    1 => "a value",
                    _ => "two values",
                }
            );
            given.options.push((name, values));
        }
        Ok(given)
    }

    fn has(&self, name: &str) -> bool {
        self.options.iter().any(|(option, _)| *option == name)
    }

    /// All values of an option; the last of it counts.
    fn values(&self, name: &str) -> &[String] {
        let mut options = self.options.iter().rev();
        let found = options.find(|(option, _)| *option == name);
        found.map_or(&[], |(_, values)| values)
    }

    fn value(&self, name: &str) -> Option<&str> {
        self.values(name).first().map(String::as_str)
    }

    /// The one of these options that is there. Refuses several, and none.
    fn action(&self, actions: &[&'static str]) -> Result<&'static str> {
        let mut found = actions.iter().filter(|action| self.has(action));
        match (found.next(), found.next()) {
            (Some(action), None) => Ok(action),
            _ => bail!("one of {} is needed", actions.join(", ")),
        }
    }

    /// Refuses more words than these.
    fn at_most(&self, count: usize) -> Result<()> {
        let verb = self.verb.unwrap_or_default();
        match self.words.get(count) {
            Some(word) => bail!("`imgbase {verb}` does not take {word:?} as well"),
            None => Ok(()),
        }
    }
}

fn is_option(arg: &str) -> bool {
    arg.len() > 1 && arg.starts_with('-')
}

fn find_verb(name: &str) -> Result<(&'static str, Options)> {
    if let Some((name, instead)) = GONE.iter().find(|(gone, _)| *gone == name) {
        bail!("there is no `imgbase {name}` here: {instead}");
    }
    let found = VERBS.iter().find(|(verb, _)| *verb == name);
    found.copied().with_context(|| {
        format!("there is no `imgbase {name}`; `imgbase --help` lists what there is")
    })
}

/// What a command line of imgbase means. Refuses what means nothing here, and says what does that work.
pub fn parse(args: &[String], facts: &Facts) -> Result<Call> {
    let given = Given::read(args)?;
    // What they chose is in the names.
    for (option, only) in [("--layerformat", "Image-%d.%d"), ("--stream", "Image")] {
        if let Some(value) = given.value(option) {
            ensure!(
                value == only,
                "{option} {value} is not possible: a base is called Base-<N>, or as `imgbased-helper base add --name` \
                 says, and its layers after it"
            );
        }
    }
    let meaning = if given.has("--help") || given.has("-h") {
        Meaning::Help
    } else if given.has("--version") {
        Meaning::Version
    } else {
        let verb = given.verb;
        let verb = verb.context("a verb is needed; `imgbase --help` lists what there is")?;
        meaning(verb, &given, facts)?
    };
    let value = |option| given.value(option).map(str::to_owned);
    Ok(Call {
        vg: value("--vg"),
        pool: value("--thinpool"),
        dry_run: given.has("--dry"),
        verbose: given.has("--debug"),
        meaning,
    })
}

fn meaning(verb: &str, given: &Given, facts: &Facts) -> Result<Meaning> {
    match verb {
        "layout" if given.has("--init") || given.has("--init-nvr") => init(given, facts.nvr),
        "base" if given.has("--add") => add_base(given, facts),
        "layout" => {
            given.at_most(0)?;
            layout(given)
        }
        "base" => {
            given.at_most(0)?;
            base(given)
        }
        "layer" => layer(given),
        "update" => update(given),
        "diff" => diff(given),
        "pkg" => packages(given),
        _ => {
            given.at_most(0)?;
            without_words(verb, given)
        }
    }
}

/// The verbs that take options only.
fn without_words(verb: &str, given: &Given) -> Result<Meaning> {
    Ok(match verb {
        "w" => Meaning::Show(What::Current),
        "check" => Meaning::Show(What::Check),
        "motd" => {
            ensure!(
                !given.has("--update"),
                "there is no `imgbase motd --update` here: imgbased-bless.service tells of what failed in /run/motd.d"
            );
            Meaning::Show(What::Motd)
        }
        "rollback" => match given.value("--to") {
            Some(to) => verb_of(&["rollback", "--to", to]),
            None => verb_of(&["rollback"]),
        },
        "boot" => boot(given)?,
        "volume" => volume(given)?,
        "recover" if given.has("--list") => verb_of(&["check"]),
        "recover" => verb_of(&["check", "--repair"]),
        // The kernels of a layer are where its entries say, and it keeps its identity by itself.
        _ => {
            given.action(&["--start", "--stop"])?;
            Meaning::Nothing
        }
    })
}

fn verb_of(words: &[&str]) -> Meaning {
    Meaning::Verb(words.iter().map(|&word| word.to_owned()).collect())
}

fn layout(given: &Given) -> Result<Meaning> {
    for option in ["--from", "--size", "--without-vg"] {
        ensure!(!given.has(option), "{option} needs --init");
    }
    let actions = ["--bases", "--layers", "--free-space"];
    let what = if actions.iter().all(|action| !given.has(action)) {
        What::Tree
    } else {
        match given.action(&actions)? {
            "--bases" => What::Bases,
            "--layers" => What::Layers,
            _ => What::FreeSpace(unit(given.value("--units").unwrap_or("m"))?),
        }
    };
    Ok(Meaning::Show(what))
}

/// The bytes in a unit of lvm2: capitals are of the SI.
fn unit(name: &str) -> Result<u64> {
    let mut letters = name.chars();
    let (letter, rest) = (letters.next().unwrap_or(' '), letters.as_str());
    let power = "bkmgtpe".find(letter.to_ascii_lowercase());
    let (Some(power), "") = (power, rest) else {
        bail!("--units {name} is none of b, k, m, g, t, p, e, K, M, G, T, P and E");
    };
    let step: u64 = if letter.is_ascii_uppercase() {
        1000
    } else {
        1024
    };
    Ok(step.pow(u32::try_from(power)?))
}

fn init(given: &Given, nvr: Option<&str>) -> Result<Meaning> {
    ensure!(
        !given.has("--without-vg"),
        "there is no --without-vg here: `imgbased-helper layout init --from VOLUME` takes over a group with the system \
         on a thin volume in it, and `layout init --device DISK` makes one"
    );
    let mut words = vec!["layout", "init"];
    let name = given.value("--init-nvr");
    let size = given.value("--size").map(size);
    if given.words.is_empty() {
        ensure!(
            size.is_none(),
            "--size is that of a new pool, and no disk is named to make it on; without --size, --init takes over what \
             runs"
        );
        words.extend(["--from", given.value("--from").unwrap_or("/")]);
        if let Some(name) = name.or(nvr) {
            words.extend(["--name", name]);
        }
        return Ok(verb_of(&words));
    }
    for option in ["--from", "--init-nvr"] {
        ensure!(
            !given.has(option),
            "{option} is of a system that is there, and disks for a new group are named as well"
        );
    }
    for device in &given.words {
        words.extend(["--device", device]);
    }
    if let Some(size) = &size {
        words.extend(["--size", size]);
    }
    Ok(verb_of(&words))
}

/// A size as lvm2 took it: a plain number was one of MiB.
fn size(text: &str) -> String {
    let is_plain = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    let unit = if is_plain { "M" } else { "" };
    format!("{text}{unit}")
}

/// The first versions took an image from a file or standard input, and later ones a name for an empty base.
fn add_base(given: &Given, facts: &Facts) -> Result<Meaning> {
    for option in ["--latest", "--of-layer", "--remove"] {
        ensure!(!given.has(option), "one of --add and {option} is needed");
    }
    given.at_most(2)?;
    let (name, image) = match given.words.as_slice() {
        [] => (None, STDIN),
        [word] if is_base_of_imgbased(word) && !word.contains('/') && !(facts.is_there)(word) => {
            (Some(word), STDIN)
        }
        [image] => (None, image.as_str()),
        [name, image, ..] => (Some(name), image.as_str()),
    };
    let mut words = vec!["base", "add", if image == "-" { STDIN } else { image }];
    if let Some(name) = name {
        words.extend(["--name", name]);
    }
    let size = given.value("--size").map(size);
    if let Some(size) = &size {
        words.extend(["--size", size]);
    }
    Ok(verb_of(&words))
}

fn base(given: &Given) -> Result<Meaning> {
    let action = given.action(&["--add", "--latest", "--of-layer", "--remove"])?;
    let name = given.value(action).unwrap_or_default();
    Ok(match action {
        "--latest" => verb_of(&["base", "latest"]),
        "--of-layer" => Meaning::Show(What::BaseOf(name.to_owned())),
        // It did not ask either.
        _ => verb_of(&["base", "remove", "--yes", name]),
    })
}

fn layer(given: &Given) -> Result<Meaning> {
    let actions = [
        "--add",
        "--latest",
        "--current",
        "--volume-path",
        "--remove",
    ];
    let action = given.action(&actions)?;
    let name = given.value(action).unwrap_or_default();
    given.at_most(usize::from(action == "--add"))?;
    Ok(match action {
        "--add" => match given.words.first() {
            Some(origin) => verb_of(&["layer", "add", origin]),
            None => Meaning::AddLayer,
        },
        "--latest" => verb_of(&["layer", "latest"]),
        "--current" => verb_of(&["layer", "current"]),
        "--volume-path" => Meaning::Show(What::Device(name.to_owned())),
        _ => verb_of(&["layer", "remove", name]),
    })
}

fn update(given: &Given) -> Result<Meaning> {
    given.at_most(1)?;
    let image = given.words.first().context("an image is needed")?;
    let format = given.value("--format").unwrap_or("liveimg");
    ensure!(
        format == "liveimg",
        "there is no --format {format}: the content of an image decides, as `imgbased-helper base add --help` tells"
    );
    Ok(verb_of(&["update", image]))
}

fn boot(given: &Given) -> Result<Meaning> {
    let actions = [
        "--list",
        "--get-default",
        "--set-default",
        "--setup",
        "--remove-other-boot-entries",
    ];
    let action = given.action(&actions)?;
    let value = given.value(action);
    Ok(match action {
        "--list" => verb_of(&["boot", "list"]),
        "--get-default" => Meaning::Show(What::Default),
        "--set-default" => verb_of(&["boot", "default", value.unwrap_or_default()]),
        "--setup" => {
            ensure!(
                value.is_none_or(|root| root == "/"),
                "--setup writes the entries of what runs; `imgbased-helper boot refresh NAME` does it for another layer"
            );
            verb_of(&["boot", "refresh"])
        }
        _ => bail!(
            "there is no {action} here: what others have put into the boot menu stays; `imgbased-helper boot repair` \
             removes entries whose layers are gone"
        ),
    })
}

fn volume(given: &Given) -> Result<Meaning> {
    let actions = ["--list", "--create", "--remove", "--attach", "--detach"];
    let action = given.action(&actions)?;
    let values = given.values(action);
    Ok(match (action, values) {
        ("--create", [path, bytes]) => verb_of(&["volume", "add", path, "--size", &size(bytes)]),
        ("--remove", [path]) => verb_of(&["volume", "remove", path, "--delete"]),
        ("--detach", [path]) => verb_of(&["volume", "remove", path]),
        ("--attach", _) => bail!(
            "there is no --attach here: each layer mounts all volumes that there are; `imgbased-helper volume add PATH` \
             makes one"
        ),
        _ => Meaning::Show(What::Volumes),
    })
}

fn diff(given: &Given) -> Result<Meaning> {
    given.at_most(2)?;
    ensure!(
        given.words.len() != 1,
        "two bases or layers are needed, or none for what runs and its base"
    );
    let mode = given.value("--mode").or(given.value("-m"));
    let mode = mode.unwrap_or("tree");
    ensure!(
        mode == "tree",
        "there is no --mode {mode} here: `imgbased-helper diff` names the files, and `persist diff FILE` shows what was \
         changed in one of /etc"
    );
    let words = given.words.iter().map(String::as_str);
    Ok(verb_of(
        &["diff"].into_iter().chain(words).collect::<Vec<_>>(),
    ))
}

fn packages(given: &Given) -> Result<Meaning> {
    given.at_most(1)?;
    match (given.value("--diff"), given.words.first()) {
        (Some(a), Some(b)) => Ok(Meaning::Show(What::Packages([a.to_owned(), b.clone()]))),
        _ => bail!("`imgbase pkg --diff A B` takes two bases or layers"),
    }
}

#[cfg(test)]
mod tests;
