//! The option that names the crashed image, and what is said on stderr about it.

use std::path::PathBuf;

use anyhow::Result;
use clap::Args;
use vmcore::{Dump, Error, Image};

use super::say;

#[derive(Args)]
pub(super) struct ImageArgs {
    /// The crashed appliance's ELF file [default: looked for by its build-id]
    #[arg(long)]
    image: Option<PathBuf>,
}

impl ImageArgs {
    /// The image, for commands that do without it; one that was named has to be right.
    pub(super) fn find_if_any(&self, dump: &Dump) -> Result<Option<Image>> {
        match self.find(dump) {
            Ok(image) => Ok(Some(image)),
            Err(_) if self.image.is_none() => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The image; says on stderr what is wrong with it.
    pub(super) fn find(&self, dump: &Dump) -> vmcore::Result<Image> {
        let image = vmcore::find_image(dump, self.image.as_deref())?;
        for warning in image.warnings() {
            say(&format!("warning: {warning}"));
        }
        Ok(image)
    }

    /// Says on stderr when the image that was named, or the one that lies where it would be
    /// taken, is not that of the dump: the dump may be one of an earlier run.
    pub(super) fn warn_of_another(&self, dump: &Dump) {
        match vmcore::find_image(dump, self.image.as_deref()) {
            Err(Error::NoImage(search)) if search.other_build => {
                let others = search
                    .looked_at
                    .iter()
                    .map(|(path, what)| format!("\n  {}: {what}", path.display()));
                say(&format!(
                    "warning: the dump is of another image than the one at hand, of build-id {}; it \
                     may be of an earlier run{}",
                    search.wanted,
                    others.collect::<String>()
                ));
            }
            Err(error) if self.image.is_some() => say(&format!("warning: {error}")),
            _ => {}
        }
    }
}
