//! The power goes during a dump, at every write and in between.
//!
//! `cargo xtask soak --power-loss` does the same with more dumps and more states, and kills
//! machines as well.

use e2e::harness::{self, Verdict};
use e2e::power::{Images, Plan, Scene, replay};

use crate::story::{assert_verdict, folder};

#[test]
#[ignore = "boots QEMU: run cargo xtask test"]
fn no_state_of_the_disk_lies() {
    let images = Images::make(&folder().join("before")).expect("disks with dumps");
    for (number, scene) in Scene::list(3).iter().enumerate() {
        let mut options = scene.options(&images, folder().join(number.to_string()));
        options.disks[0].recorded = true;
        options.tidy = true;
        let outcome = harness::run(&options, &mut |_| ()).expect("a run");
        assert_verdict(&outcome, Verdict::Captured);
        let log = outcome.out.join("disk.img.writes");
        let base = options.disk_image.as_ref().expect("an image");
        let plan = Plan { seed: 1, subsets: 50 };
        let report = replay(base, &log, &plan, &mut |_| ()).expect("every state is right");
        println!("{}: {report:?}", scene.name());
        assert!(report.states > 150, "{report:?}");
        assert!(report.found.len() >= 2, "before and behind a seal: {report:?}");
    }
    std::fs::remove_dir_all(folder().join("before")).expect("large files gone");
}
