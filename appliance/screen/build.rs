//! Turns a font of the embedded-graphics crate into a table of rows.
//!
//! Done when building, so that what draws a panic screen is an index into a constant: no
//! code of a library, no branch that could panic, and 4 KiB instead of a drawing library in
//! the capture image.

use std::fmt::Write;
use std::path::PathBuf;

use embedded_graphics::geometry::Point;
use embedded_graphics::image::GetPixel;
use embedded_graphics::mono_font::ascii::FONT_10X20 as FONT;
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::OriginDimensions;

fn main() {
    let (width, height) = (FONT.character_size.width, FONT.character_size.height);
    let across = FONT.image.size().width / width;
    let mut table = String::from("[\n");
    for character in ' '..='~' {
        let index = FONT.glyph_mapping.index(character) as u32;
        let (left, top) = (index % across * width, index / across * height);
        let row = |y: u32| {
            (0..width).fold(0u32, |bits, x| {
                let at = Point::new((left + x) as i32, (top + y) as i32);
                bits << 1 | u32::from(FONT.image.pixel(at) == Some(BinaryColor::On))
            })
        };
        let rows: Vec<_> = (0..height).map(|y| format!("{:#05x}", row(y))).collect();
        writeln!(table, "    [{}],", rows.join(", ")).expect("a string grows");
    }
    table.push(']');
    let out = PathBuf::from(std::env::var_os("OUT_DIR").expect("cargo sets it"));
    std::fs::write(out.join("glyphs.rs"), table).expect("cargo's own folder can be written");
    println!("cargo::rerun-if-changed=build.rs");
}
