//! Files that the CLI writes: who can read them, and what they never overwrite.

use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::process::{Command, Output};

use e2e::synth::area_v2::{Dump, Storing, build};
use e2e::synth::core::Core;

use crate::common::{Folder, answer, is_core, vmcore};

/// A folder with a disk, `disk.img`, that holds one dump.
fn folder(name: &str) -> (Folder, Vec<u8>) {
    let folder = Folder::new(name);
    let core = Core::small().build();
    let disk = build(&[Some(Dump::sealed(8, core.clone(), Storing::Raw))]);
    folder.file("disk.img", &disk);
    (folder, core)
}

/// Runs the program with a umask.
fn with_umask(folder: &Folder, umask: &str, words: &str) -> Output {
    let program = env!("CARGO_BIN_EXE_vmcore");
    let script = format!("umask {umask}; exec {program} {words}");
    let mut command = Command::new("sh");
    command.args(["-c", &script]).current_dir(folder.path("."));
    command.output().expect("start a shell")
}

fn refused(folder: &Folder, words: &[&str]) -> String {
    let output = vmcore(folder, words);
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{words:?}: {said}");
    said
}

#[test]
fn only_the_owner_reads_what_was_in_memory() {
    let (folder, _) = folder("output-mode");
    let disk = std::fs::read(folder.path("disk.img")).expect("a disk");
    let mut words = vmcore_format::last_words::LastWords::begin(String::new());
    let cpu = "cpu index=0 apic_id=0 stopped_by=crash registers_from=self rip=0x1 rsp=0x2 rbp=0x3";
    words.line(format_args!("{cpu}"));
    folder.file("console.log", words.end().as_bytes());
    for umask in ["000", "022", "077", "777"] {
        folder.file("disk.img", &disk);
        for words in [
            "extract disk.img -o extracted --force",
            "extract disk.img -o elided --elide-zero --force",
            "extract disk.img -o partial --partial --force",
            "from-console console.log -o small --force",
        ] {
            let output = with_umask(&folder, umask, words);
            let said = String::from_utf8_lossy(&output.stderr);
            assert!(output.status.success(), "umask {umask}: {words}: {said}");
            let name = words.split_whitespace().skip_while(|word| *word != "-o").nth(1);
            let data = std::fs::metadata(folder.path(name.expect("a name"))).expect("it");
            assert_eq!(data.permissions().mode() & 0o7777, 0o600, "umask {umask}: {words}");
        }
        // The folder itself has to be there when the owner may not enter what is made.
        std::fs::create_dir_all(folder.path("cores")).expect("a folder");
        let output = with_umask(&folder, umask, "collect disk.img -o cores");
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let cores = std::fs::read_dir(folder.path("cores")).expect("a folder");
        for core in cores.map(|core| core.expect("a core").path()) {
            let mode = std::fs::metadata(&core).expect("it").permissions().mode();
            assert_eq!(mode & 0o7777, 0o600, "umask {umask}: {}", core.display());
        }
    }
}

#[test]
fn links_are_replaced_and_never_followed() {
    let (folder, core) = folder("output-links");
    let victim = folder.file("victim", b"precious");
    let names = ["core", "core.partial", "cores/20260101T000000Z-0badc0de.core"];
    std::fs::create_dir(folder.path("cores")).expect("a folder");
    for name in names {
        symlink(&victim, folder.path(name)).expect("a link");
    }
    symlink("nowhere", folder.path("dangling")).expect("a link");
    for name in ["core", "dangling"] {
        let said = refused(&folder, &["extract", "disk.img", "-o", name]);
        assert!(said.contains("exists already"), "{said}");
        answer(&folder, &["extract", "disk.img", "-o", name, "--force"]);
        let data = std::fs::symlink_metadata(folder.path(name)).expect("it");
        assert!(data.is_file(), "{name} is still a link");
        is_core(&folder, name, &core);
    }
    assert!(!folder.path("nowhere").exists());
    answer(&folder, &["collect", "disk.img", "-o", "cores"]);
    assert_eq!(std::fs::read(&victim).expect("it"), b"precious");
    // Nothing is left of temporary names.
    let left = std::fs::read_dir(folder.path(".")).expect("a folder");
    let left: Vec<_> = left.map(|entry| entry.expect("a name").file_name()).collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().starts_with(".vmcore")), "{left:?}");
    // A hard link to something else keeps its content.
    std::fs::hard_link(&victim, folder.path("hard")).expect("a link");
    answer(&folder, &["extract", "disk.img", "-o", "hard", "--force"]);
    assert_eq!(std::fs::read(&victim).expect("it"), b"precious");
}

#[test]
fn a_source_is_no_output() {
    let (folder, core) = folder("output-source");
    symlink("disk.img", folder.path("soft")).expect("a link");
    std::fs::hard_link(folder.path("disk.img"), folder.path("hard")).expect("a link");
    folder.file("core", &core);
    folder.file("console.log", b"nothing");
    let before = std::fs::read(folder.path("disk.img")).expect("a disk");
    for (source, out) in [
        ("disk.img", "disk.img"),
        ("disk.img", "./disk.img"),
        ("disk.img", "soft"),
        ("disk.img", "hard"),
        ("soft", "disk.img"),
        ("soft", "soft"),
        ("hard", "disk.img"),
        ("core", "core"),
    ] {
        let said = refused(&folder, &["extract", "--force", source, "-o", out]);
        assert!(said.contains("which is read"), "{source} {out}: {said}");
    }
    let words = ["extract", "--force", "core", "--with", "disk.img", "-o", "disk.img"];
    assert!(refused(&folder, &words).contains("which is read"));
    let words = ["from-console", "--force", "console.log", "-o", "console.log"];
    let said = refused(&folder, &words);
    assert!(said.contains("which is read") || said.contains("no last words"), "{said}");
    assert!(std::fs::read(folder.path("disk.img")).expect("a disk") == before);
    assert!(std::fs::read(folder.path("core")).expect("a core") == core);
    assert_eq!(std::fs::read(folder.path("console.log")).expect("it"), b"nothing");
    assert!(std::fs::symlink_metadata(folder.path("soft")).expect("it").is_symlink());
}

#[test]
fn only_a_plain_file_is_an_output() {
    let (folder, _) = folder("output-kinds");
    nix::unistd::mkfifo(&folder.path("fifo"), nix::sys::stat::Mode::S_IRWXU).expect("a FIFO");
    std::fs::create_dir(folder.path("sub")).expect("a folder");
    symlink("/dev/null", folder.path("null")).expect("a link");
    for (out, kind) in [
        ("fifo", "a pipe"),
        ("sub", "a folder"),
        ("/dev/null", "a character device"),
        ("null", "a character device"),
        ("..", "names no file"),
    ] {
        for force in [&[][..], &["--force"]] {
            let said = refused(&folder, &[&["extract", "disk.img", "-o", out], force].concat());
            assert!(said.contains(kind) && said.contains("hint: "), "{out}: {said}");
        }
    }
    let data = std::fs::metadata(folder.path("fifo")).expect("it");
    assert!(data.file_type().is_fifo());
    let null = std::fs::metadata("/dev/null").expect("it");
    assert!(null.file_type().is_char_device() && null.rdev() != 0);
    // Nor is anything but a disk taken from.
    let said = refused(&folder, &["collect", "fifo", "-o", "cores"]);
    assert!(said.contains("neither a disk nor an image"), "{said}");
}
