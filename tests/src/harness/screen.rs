//! What the screen shows, read from the outside: QEMU's picture of it, and the words in it.

use std::path::Path;

use anyhow::{Context, Result, bail};
use embedded_graphics::geometry::Point;
use embedded_graphics::image::GetPixel;
use embedded_graphics::mono_font::ascii::FONT_10X20 as FONT;
use embedded_graphics::pixelcolor::BinaryColor;
use embedded_graphics::prelude::OriginDimensions;
use serde_json::json;

use super::qmp::Qmp;

/// Pixels of a letter.
const WIDTH: usize = 10;
const HEIGHT: usize = 20;
/// Letters are drawn up to so many times as large.
const SCALES: std::ops::RangeInclusive<usize> = 1..=3;

type Pixel = [u8; 3];
type Glyph = [[bool; WIDTH]; HEIGHT];

/// A picture of the screen.
#[derive(Debug, Clone)]
pub struct Picture {
    width: usize,
    pixels: Vec<Pixel>,
}

impl Picture {
    /// Has QEMU take one, and keeps it as `NAME.png` in `folder`.
    ///
    /// # Errors
    /// The machine has no screen, or is gone.
    pub fn take(qmp: &mut Qmp, folder: &Path, name: &str) -> Result<Self> {
        let mut dump = |extension: &str, format: &str| -> Result<_> {
            let path = folder.join(name).with_extension(extension);
            qmp.execute("screendump", json!({ "filename": path, "format": format }))?;
            Ok(path)
        };
        dump("png", "png")?;
        let path = dump("ppm", "ppm")?;
        let bytes = std::fs::read(&path).context("the picture")?;
        std::fs::remove_file(&path).context("the picture")?;
        Self::from_ppm(&bytes)
    }

    /// Reads a binary PPM (netpbm, format P6) with a byte a colour.
    fn from_ppm(bytes: &[u8]) -> Result<Self> {
        let mut rest = bytes;
        let mut word = || -> Result<&[u8]> {
            let end = rest.iter().position(u8::is_ascii_whitespace).context("cut short")?;
            let (word, more) = rest.split_at(end);
            rest = &more[1..];
            Ok(word)
        };
        if word()? != b"P6" {
            bail!("not a PPM");
        }
        let mut number = || -> Result<usize> { Ok(std::str::from_utf8(word()?)?.parse()?) };
        let (width, height, most) = (number()?, number()?, number()?);
        if most != 255 || rest.len() != width * height * 3 {
            bail!("a PPM of {width} by {height}, values up to {most}, {} bytes", rest.len());
        }
        let pixels = rest.chunks_exact(3).map(|p| [p[0], p[1], p[2]]).collect();
        Ok(Self { width, pixels })
    }

    /// Every line of text on it, in every size there is, from the top down. A line is read
    /// in each size; in the wrong ones it is mostly nothing.
    #[must_use]
    pub fn lines(&self) -> Vec<String> {
        let glyphs = glyphs();
        let tops = (0..self.pixels.len() / self.width.max(1)).step_by(HEIGHT);
        tops.flat_map(|top| SCALES.map(move |scale| (top, scale)))
            .map(|(top, scale)| {
                let columns = self.width / (WIDTH * scale);
                let letters = (0..columns).map(|column| {
                    let glyph = self.glyph(column * WIDTH * scale, top, scale);
                    let known = glyphs.iter().find(|(_, known)| Some(*known) == glyph);
                    // Not a letter of this size.
                    known.map_or('\u{b7}', |(letter, _)| *letter)
                });
                letters.collect::<String>().trim_end().to_owned()
            })
            .filter(|line| line.chars().any(char::is_alphanumeric))
            .collect()
    }

    /// The letter at a place, read pixel by pixel: what is not as its corner is ink.
    fn glyph(&self, left: usize, top: usize, scale: usize) -> Option<Glyph> {
        let paper = self.pixel(left, top)?;
        let mut glyph = [[false; WIDTH]; HEIGHT];
        let mut ink = None;
        for y in 0..HEIGHT * scale {
            for x in 0..WIDTH * scale {
                let pixel = self.pixel(left + x, top + y)?;
                let set = pixel != paper;
                if set && *ink.get_or_insert(pixel) != pixel {
                    return None;
                }
                let place = &mut glyph[y / scale][x / scale];
                if y % scale == 0 && x % scale == 0 {
                    *place = set;
                } else if *place != set {
                    return None;
                }
            }
        }
        Some(glyph)
    }

    fn pixel(&self, x: usize, y: usize) -> Option<Pixel> {
        self.pixels.get(y * self.width + x).copied().filter(|_| x < self.width)
    }
}

/// The font, as its makers' own library has it.
fn glyphs() -> Vec<(char, Glyph)> {
    let across = FONT.image.size().width as usize / WIDTH;
    let read = |letter: char| {
        let index = FONT.glyph_mapping.index(letter);
        let (left, top) = (index % across * WIDTH, index / across * HEIGHT);
        let mut glyph = [[false; WIDTH]; HEIGHT];
        for (y, row) in glyph.iter_mut().enumerate() {
            for (x, pixel) in row.iter_mut().enumerate() {
                let at = Point::new((left + x) as i32, (top + y) as i32);
                *pixel = FONT.image.pixel(at) == Some(BinaryColor::On);
            }
        }
        (letter, glyph)
    };
    (' '..='~').map(read).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Draws `text` twice as large at line `line` of a screen that is all of one colour.
    fn drawn(text: &str, line: usize) -> Picture {
        let (width, height, scale) = (640, 80, 2);
        let mut picture = Picture { width, pixels: vec![[9, 9, 99]; width * height] };
        for (column, letter) in text.chars().enumerate() {
            let (_, glyph) = glyphs().into_iter().find(|(known, _)| *known == letter).unwrap();
            for (y, row) in glyph.iter().enumerate() {
                for (x, _) in row.iter().enumerate().filter(|(_, set)| **set) {
                    for dot in 0..scale * scale {
                        let x = (column * WIDTH + x) * scale + dot % scale;
                        let y = line * HEIGHT + y * scale + dot / scale;
                        picture.pixels[y * width + x] = [255; 3];
                    }
                }
            }
        }
        picture
    }

    #[test]
    fn words_are_read_in_their_size_and_spoilt_ones_are_not() {
        let mut picture = drawn("dump 42%", 1);
        assert!(picture.lines().contains(&"dump 42%".to_owned()), "{:?}", picture.lines());
        // One pixel of the d.
        let at = picture.pixels.iter().position(|pixel| *pixel == [255; 3]).unwrap();
        picture.pixels[at] = [0; 3];
        assert!(!picture.lines().iter().any(|line| line.starts_with("dump")));
    }

    #[test]
    fn a_ppm_is_read_to_the_byte() {
        let picture = Picture::from_ppm(b"P6\n2 1\n255\n\x01\x02\x03 \n\t").unwrap();
        assert_eq!((picture.width, picture.pixels), (2, vec![[1, 2, 3], [32, 10, 9]]));
        assert!(Picture::from_ppm(b"P6\n2 1\n255\nxyz").is_err());
    }
}
