//! An independent builder of dumps, disks and images.
//!
//! It shares no layout with the code that writes real ones: every offset and constant
//! here is typed in from the documents (`docs/dump-area.md`, the ELF specification,
//! Linux's `elfcore.h`, the comments of the hand-off records). When the writer and the
//! reader agree on something wrong, this one does not.

pub mod area;
pub mod area_v2;
mod bytes;
pub mod core;
pub mod gpt;
pub mod image;
mod records;
