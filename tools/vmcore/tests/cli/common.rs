//! What the CLI's tests share: a folder per test, the program, the synthetic dump.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use e2e::synth::core::Core;
use e2e::synth::image;
use serde_json::Value;
use vmcore::Dump;
use vmcore::dump::Memory;

/// A folder of its own for a test, removed when the test is over.
pub struct Folder(PathBuf);

impl Folder {
    pub fn new(name: &str) -> Self {
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        let _ = std::fs::remove_dir_all(&path);
        std::fs::create_dir_all(&path).expect("a folder for the test");
        Self(path)
    }

    /// Writes a file into it.
    pub fn file(&self, name: &str, bytes: &[u8]) -> PathBuf {
        let path = self.0.join(name);
        std::fs::create_dir_all(path.parent().expect("it is in the folder")).expect("a folder");
        std::fs::write(&path, bytes).expect("write the test's file");
        path
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// Runs the program in `folder`, away from every workspace whose images it might find.
pub fn vmcore(folder: &Folder, arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_vmcore"))
        .args(arguments)
        .current_dir(&folder.0)
        .env_remove("EPITAPH_IMAGE_PATH")
        .env_remove("CARGO_TARGET_DIR")
        .output()
        .expect("start vmcore")
}

/// Its answer, when it has to have one.
pub fn answer(folder: &Folder, arguments: &[&str]) -> String {
    let output = vmcore(folder, arguments);
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "vmcore {arguments:?}: {stderr}");
    String::from_utf8(output.stdout).expect("UTF-8")
}

/// Its complaint, when it has to have one: exit code 1, no answer, a line that starts
/// with its name.
pub fn complaint(folder: &Folder, arguments: &[&str]) -> String {
    let output = vmcore(folder, arguments);
    let stderr = String::from_utf8(output.stderr).expect("UTF-8");
    assert_eq!(output.status.code(), Some(1), "vmcore {arguments:?}: {stderr}");
    assert!(output.stdout.is_empty(), "vmcore {arguments:?} answered and complained");
    assert!(stderr.starts_with("vmcore: "), "{stderr}");
    stderr
}

/// Asserts that the memory of `one` is in `other`, page by page.
pub fn memory_is_in(one: &Dump, other: &Dump) {
    for segment in one.segments() {
        let mut pages = [[0; 4096]; 2];
        for address in (0..segment.load.memory_bytes).step_by(4096) {
            let address = segment.load.physical_address + address;
            one.read(address, &mut pages[0]).expect("in the first");
            other.read(address, &mut pages[1]).expect("in the second");
            assert!(pages[0] == pages[1], "{address:#x}");
        }
    }
}

/// Asserts that the file `name` is a core with the memory and the records of the core `wanted`,
/// whose headers may be others.
pub fn is_core(folder: &Folder, name: &str, wanted: &[u8]) {
    let wanted = Dump::open(folder.file("wanted", wanted)).expect("the core wanted");
    let found = Dump::open(folder.path(name)).expect("the core found");
    memory_is_in(&wanted, &found);
    memory_is_in(&found, &wanted);
    let records = |dump: &Dump| {
        let info = vmcore::info(dump);
        let excluded = serde_json::to_string(&info.excluded).expect("JSON");
        (info.headline(), info.build_id, info.cpus, info.command_line, info.words, excluded)
    };
    assert_eq!(records(&found), records(&wanted));
    let verified = vmcore::verify(&found, &mut |_, _| ());
    assert!(verified.bad.is_empty() && verified.left_out.is_empty(), "{verified:?}");
}

/// Its answer in JSON, and its exit code, for answers that are given and bad.
pub fn given(folder: &Folder, arguments: &[&str]) -> (Option<i32>, Value) {
    let output = vmcore(folder, &[arguments, &["--json"]].concat());
    let stderr = String::from_utf8_lossy(&output.stderr);
    let json = serde_json::from_slice(&output.stdout);
    (output.status.code(), json.unwrap_or_else(|_| panic!("vmcore {arguments:?}: {stderr}")))
}

/// A folder with the small synthetic core as `vmcore` and its image beside it.
pub fn with_small_core(name: &str) -> Folder {
    let folder = Folder::new(name);
    folder.file("vmcore", &Core::small().build());
    folder.file("appliance", &image::build(&image::BUILD_ID));
    folder
}
