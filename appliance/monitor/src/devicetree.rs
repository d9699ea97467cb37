//! Adds nodes and properties to a flattened device tree where it lies.
//!
//! The monitor has no allocator and gets the tree in place, with room behind it. Of the crates
//! that need no allocator, `fdt` only reads, and `dtoolkit` 0.4 sets and adds properties but
//! adds no node; `vm-fdt` builds a new tree on a heap. So the writing is here, and a test has
//! `dtoolkit` read the result.
//!
//! A tree is untrusted: every offset is checked before use, and every walk ends, since each
//! step goes forward in the structure block. Format: Devicetree Specification 0.4, chapter 5.

/// Reason why a tree cannot be read or changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TreeError {
    /// There is no tree, or one of another version.
    NotATree,
    /// An offset, a length or a token leads nowhere.
    Damaged,
    /// The blocks lie in an order that nothing can be inserted into.
    Layout,
    /// The room behind the tree is used up.
    Full,
}

impl core::fmt::Display for TreeError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::NotATree => "no device tree of version 16 or 17",
            Self::Damaged => "the device tree is damaged",
            Self::Layout => "the blocks of the device tree are not in the order that QEMU has",
            Self::Full => "no room is left behind the device tree",
        })
    }
}

impl core::error::Error for TreeError {}

/// Offsets of the header's fields.
const MAGIC: usize = 0;
const TOTAL_SIZE: usize = 4;
const STRUCTURE: usize = 8;
const STRINGS: usize = 12;
const RESERVATIONS: usize = 16;
const LAST_COMPATIBLE: usize = 24;
const STRINGS_SIZE: usize = 32;
const STRUCTURE_SIZE: usize = 36;
/// Bytes of the header.
const HEADER: usize = 40;

/// The first field.
const MAGIC_VALUE: u32 = 0xd00d_feed;
/// Trees of version 17 are readable as version 16.
const COMPATIBLE: u32 = 16;

/// Tokens of the structure block.
const BEGIN_NODE: u32 = 1;
const END_NODE: u32 = 2;
const PROPERTY: u32 = 3;
const NOP: u32 = 4;

/// Bytes of a property in front of its value: token, length, offset of the name.
const PROPERTY_HEAD: usize = 12;

/// A node, as the offset of its first token behind its name. An insertion moves the nodes
/// behind it, so a node found earlier is good only if it lies in front of what was changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node(usize);

/// A device tree that can be added to.
#[derive(Debug)]
pub struct DeviceTree<'a> {
    bytes: &'a mut [u8],
}

impl<'a> DeviceTree<'a> {
    /// Takes the tree at the start of `bytes`; what is behind it in `bytes` is room to grow.
    ///
    /// # Errors
    /// No tree is there, or its blocks are not where they can grow.
    pub fn open(bytes: &'a mut [u8]) -> Result<Self, TreeError> {
        let tree = Self { bytes };
        let magic = tree.word(MAGIC).map_err(|_| TreeError::NotATree)?;
        if magic != MAGIC_VALUE || tree.field(LAST_COMPATIBLE)? != COMPATIBLE as usize {
            return Err(TreeError::NotATree);
        }
        if tree.field(TOTAL_SIZE)? > tree.bytes.len() || tree.strings_end()? > tree.bytes.len() {
            return Err(TreeError::Damaged);
        }
        let structure = tree.field(STRUCTURE)?;
        let ordered = HEADER <= tree.field(RESERVATIONS)?
            && tree.field(RESERVATIONS)? <= structure
            && tree.structure_end()? <= tree.field(STRINGS)?;
        if !ordered || !structure.is_multiple_of(4) {
            return Err(TreeError::Layout);
        }
        Ok(tree)
    }

    /// Returns the root.
    ///
    /// # Errors
    /// The structure block does not begin with one.
    pub fn root(&self) -> Result<Node, TreeError> {
        match self.token(self.field(STRUCTURE)?)? {
            (BEGIN_NODE, next) => Ok(Node(next)),
            _ => Err(TreeError::Damaged),
        }
    }

    /// Returns the child number `index` of `node`, and `None` behind the last.
    ///
    /// # Errors
    /// The tree is damaged.
    pub fn child(&self, node: Node, index: usize) -> Result<Option<Node>, TreeError> {
        let mut left = index;
        let mut at = node.0;
        let mut depth = 0_usize;
        loop {
            let (token, next) = self.token(at)?;
            match token {
                BEGIN_NODE if depth == 0 && left == 0 => return Ok(Some(Node(next))),
                BEGIN_NODE => {
                    left -= usize::from(depth == 0);
                    depth += 1;
                }
                END_NODE if depth == 0 => return Ok(None),
                END_NODE => depth -= 1,
                _ => {}
            }
            at = next;
        }
    }

    /// Returns the child of `node` with this name, unit address included.
    ///
    /// # Errors
    /// The tree is damaged.
    pub fn find(&self, node: Node, name: &str) -> Result<Option<Node>, TreeError> {
        let mut index = 0;
        while let Some(child) = self.child(node, index)? {
            if self.name(child)? == name.as_bytes() {
                return Ok(Some(child));
            }
            index += 1;
        }
        Ok(None)
    }

    /// Returns the name of `node`, unit address included.
    ///
    /// # Errors
    /// The tree is damaged.
    pub fn name(&self, node: Node) -> Result<&[u8], TreeError> {
        // The name ends in one to four zero bytes in front of the node's first token, and
        // begins behind the token of four bytes, of which the last is not 0.
        let before = self.bytes.get(..node.0).ok_or(TreeError::Damaged)?;
        let end = before.iter().rposition(|byte| *byte != 0).ok_or(TreeError::Damaged)? + 1;
        let start = before.get(..end).and_then(|text| text.iter().rposition(|byte| *byte < b' '));
        let start = start.ok_or(TreeError::Damaged)? + 1;
        before.get(start..end).ok_or(TreeError::Damaged)
    }

    /// Returns the value of the property `name` of `node`.
    ///
    /// # Errors
    /// The tree is damaged.
    pub fn property(&self, node: Node, name: &str) -> Result<Option<&[u8]>, TreeError> {
        match self.property_at(node, name)? {
            None => Ok(None),
            Some((at, length)) => {
                let start = at + PROPERTY_HEAD;
                self.bytes.get(start..start + length).map(Some).ok_or(TreeError::Damaged)
            }
        }
    }

    /// Sets the property `name` of `node`, which is added or replaced. `node` stays good.
    ///
    /// # Errors
    /// The tree is damaged, or the room is used up; in that case the tree is as it was, but for
    /// names in its strings block that nothing uses.
    pub fn set(&mut self, node: Node, name: &str, value: &[u8]) -> Result<(), TreeError> {
        let string = self.string(name)?;
        let new = PROPERTY_HEAD + value.len().next_multiple_of(4);
        let (at, old) = match self.property_at(node, name)? {
            Some((at, length)) => (at, PROPERTY_HEAD + length.next_multiple_of(4)),
            None => (node.0, 0),
        };
        self.splice(at, old, new)?;
        self.put(at, PROPERTY)?;
        self.put(at + 4, u32::try_from(value.len()).map_err(|_| TreeError::Full)?)?;
        self.put(at + 8, string)?;
        let start = at + PROPERTY_HEAD;
        let place = self.bytes.get_mut(start..at + new).ok_or(TreeError::Damaged)?;
        place.fill(0);
        place.iter_mut().zip(value).for_each(|(byte, new)| *byte = *new);
        Ok(())
    }

    /// Returns the child `name` of `node`, which is added in front of its other children if it
    /// is not there. `node` stays good.
    ///
    /// # Errors
    /// The tree is damaged, or the room is used up.
    pub fn add(&mut self, node: Node, name: &str) -> Result<Node, TreeError> {
        if let Some(found) = self.find(node, name)? {
            return Ok(found);
        }
        let mut at = node.0;
        while let (PROPERTY | NOP, next) = self.token(at)? {
            at = next;
        }
        let padded = (name.len() + 1).next_multiple_of(4);
        self.splice(at, 0, 4 + padded + 4)?;
        self.put(at, BEGIN_NODE)?;
        let place = self.bytes.get_mut(at + 4..at + 4 + padded).ok_or(TreeError::Damaged)?;
        place.fill(0);
        place.iter_mut().zip(name.as_bytes()).for_each(|(byte, new)| *byte = *new);
        self.put(at + 4 + padded, END_NODE)?;
        Ok(Node(at + 4 + padded))
    }

    /// Returns the place of a property of `node` and the bytes of its value.
    fn property_at(&self, node: Node, name: &str) -> Result<Option<(usize, usize)>, TreeError> {
        let mut at = node.0;
        loop {
            let (token, next) = self.token(at)?;
            match token {
                PROPERTY => {
                    let start = self
                        .field(STRINGS)?
                        .checked_add(self.field(at + 8)?)
                        .ok_or(TreeError::Damaged)?;
                    let text = self.bytes.get(start..self.strings_end()?);
                    let text = text.ok_or(TreeError::Damaged)?;
                    if text.split(|byte| *byte == 0).next() == Some(name.as_bytes()) {
                        return Ok(Some((at, self.field(at + 4)?)));
                    }
                }
                NOP => {}
                _ => return Ok(None),
            }
            at = next;
        }
    }

    /// Returns the token at `at` and the place of the one behind it, which is larger than `at`
    /// and inside of the structure block.
    fn token(&self, at: usize) -> Result<(u32, usize), TreeError> {
        let end = self.structure_end()?;
        let token = self.word(at)?;
        let next = match token {
            BEGIN_NODE => {
                let name = self.bytes.get(at + 4..end).ok_or(TreeError::Damaged)?;
                let length = name.iter().position(|byte| *byte == 0);
                at + 4 + (length.ok_or(TreeError::Damaged)? + 1).next_multiple_of(4)
            }
            PROPERTY => {
                let length = self.field(at + 4)?;
                if length > end {
                    return Err(TreeError::Damaged);
                }
                at + PROPERTY_HEAD + length.next_multiple_of(4)
            }
            END_NODE | NOP => at + 4,
            _ => return Err(TreeError::Damaged),
        };
        if next > end { Err(TreeError::Damaged) } else { Ok((token, next)) }
    }

    /// Returns the offset of `name` in the strings block, which it is appended to.
    fn string(&mut self, name: &str) -> Result<u32, TreeError> {
        let (start, size) = (self.field(STRINGS)?, self.field(STRINGS_SIZE)?);
        let end = self.strings_end()?;
        let added = name.len() + 1;
        // The strings block is the last one, but a total size may say that more follows.
        let place = self.bytes.get_mut(end..end + added).ok_or(TreeError::Full)?;
        place.fill(0);
        place.iter_mut().zip(name.as_bytes()).for_each(|(byte, new)| *byte = *new);
        self.put(STRINGS_SIZE, word_of(size + added)?)?;
        self.grow(start + size + added)?;
        word_of(size)
    }

    /// Replaces `old` bytes of the structure block at `at` by `new` bytes, whose contents are
    /// left as they happen to be. Everything behind them moves.
    fn splice(&mut self, at: usize, old: usize, new: usize) -> Result<(), TreeError> {
        let end = self.strings_end()?;
        let from = at.checked_add(old).filter(|from| *from <= end).ok_or(TreeError::Damaged)?;
        let moved = |value: usize| (value + new).checked_sub(old).ok_or(TreeError::Damaged);
        let new_end = moved(end)?;
        if new_end > self.bytes.len() {
            return Err(TreeError::Full);
        }
        let (strings, size) = (self.field(STRINGS)?, self.field(STRUCTURE_SIZE)?);
        self.bytes.copy_within(from..end, at + new);
        self.put(STRINGS, word_of(moved(strings)?)?)?;
        self.put(STRUCTURE_SIZE, word_of(moved(size)?)?)?;
        self.grow(new_end)
    }

    /// Makes the tree's total size at least `size`.
    fn grow(&mut self, size: usize) -> Result<(), TreeError> {
        let total = self.field(TOTAL_SIZE)?;
        self.put(TOTAL_SIZE, word_of(total.max(size))?)
    }

    fn structure_end(&self) -> Result<usize, TreeError> {
        let end = self.field(STRUCTURE)?.checked_add(self.field(STRUCTURE_SIZE)?);
        end.ok_or(TreeError::Damaged)
    }

    fn strings_end(&self) -> Result<usize, TreeError> {
        let end = self.field(STRINGS)?.checked_add(self.field(STRINGS_SIZE)?);
        end.ok_or(TreeError::Damaged)
    }

    fn word(&self, at: usize) -> Result<u32, TreeError> {
        let bytes = self.bytes.get(at..).and_then(|bytes| bytes.first_chunk());
        bytes.copied().map(u32::from_be_bytes).ok_or(TreeError::Damaged)
    }

    /// Returns a word that is an offset or a length. Both fit 32 bits, and so do their sums
    /// in a `usize` of 64.
    fn field(&self, at: usize) -> Result<usize, TreeError> {
        usize::try_from(self.word(at)?).map_err(|_| TreeError::Damaged)
    }

    fn put(&mut self, at: usize, value: u32) -> Result<(), TreeError> {
        let place = self.bytes.get_mut(at..at + 4).ok_or(TreeError::Damaged)?;
        place.iter_mut().zip(value.to_be_bytes()).for_each(|(byte, new)| *byte = new);
        Ok(())
    }
}

fn word_of(value: usize) -> Result<u32, TreeError> {
    u32::try_from(value).map_err(|_| TreeError::Full)
}

/// Returns the memory that begins at `start`: first byte and the byte behind the last.
/// Addresses and sizes are of two cells, as QEMU's and all others of 64 bits are.
///
/// # Errors
/// The tree is damaged.
pub fn memory(
    tree: &DeviceTree<'_>,
    start: u64,
) -> Result<Option<core::ops::Range<u64>>, TreeError> {
    let root = tree.root()?;
    let mut index = 0;
    while let Some(node) = tree.child(root, index)? {
        index += 1;
        if tree.property(node, "device_type")? != Some(b"memory\0") {
            continue;
        }
        let region = tree.property(node, "reg")?.unwrap_or_default();
        let Some((base, size)) = region.split_first_chunk() else { continue };
        let Some(size) = size.first_chunk() else { continue };
        let (base, size) = (u64::from_be_bytes(*base), u64::from_be_bytes(*size));
        if base == start {
            return Ok(Some(base..base.saturating_add(size)));
        }
    }
    Ok(None)
}

/// The memory that an initrd lies in: first byte and the byte behind the last.
pub type Initrd = core::ops::Range<u64>;

/// Tells a Linux client what this monitor has: `/psci`, PSCI as the way to start each CPU,
/// with `sdei` the node `/firmware/sdei`, and where its initrd is.
///
/// # Errors
/// The tree is damaged, or the room behind it is used up.
pub fn describe(
    tree: &mut DeviceTree<'_>,
    sdei: bool,
    initrd: Option<&Initrd>,
) -> Result<(), TreeError> {
    let root = tree.root()?;
    let node = tree.add(root, "psci")?;
    tree.set(node, "compatible", b"arm,psci-1.0\0arm,psci-0.2\0")?;
    tree.set(node, "method", b"smc\0")?;
    if sdei {
        let firmware = tree.add(root, "firmware")?;
        let node = tree.add(firmware, "sdei")?;
        tree.set(node, "compatible", b"arm,sdei-1.0\0")?;
        tree.set(node, "method", b"smc\0")?;
    }
    if let Some(initrd) = initrd {
        let node = tree.add(root, "chosen")?;
        tree.set(node, "linux,initrd-start", &initrd.start.to_be_bytes())?;
        tree.set(node, "linux,initrd-end", &initrd.end.to_be_bytes())?;
    }
    let Some(cpus) = tree.find(root, "cpus")? else { return Err(TreeError::Damaged) };
    let mut index = 0;
    while let Some(node) = tree.child(cpus, index)? {
        // `cpu-map` and caches are no CPUs.
        if tree.property(node, "device_type")? == Some(b"cpu\0") {
            tree.set(node, "enable-method", b"psci\0")?;
        }
        index += 1;
    }
    Ok(())
}
