//! Fills in what the object's instructions leave open: calls of kernel functions by this kernel's own
//! numbers, which aya does not relocate.

use clawbox_common::patch::{self, CAST};

/// Bytes of an instruction, to which programs in an object are aligned.
const INSTRUCTION: usize = 8;

/// An object with this kernel's numbers in it, aligned as the ELF reader needs it.
pub struct Patched {
    bytes: Vec<u8>,
    start: usize,
}

impl Patched {
    /// A copy of `object` that calls `bpf_rdonly_cast` by its number in the kernel's types.
    pub fn new(object: &[u8], cast: u32) -> Self {
        let mut bytes = vec![0; object.len() + INSTRUCTION];
        let start = bytes.as_ptr().align_offset(INSTRUCTION).min(INSTRUCTION);
        bytes[start..start + object.len()].copy_from_slice(object);
        for instruction in bytes[start..].chunks_exact_mut(INSTRUCTION) {
            if *instruction == patch::helper_call(CAST) {
                instruction.copy_from_slice(&patch::kernel_call(cast));
            }
        }
        bytes.truncate(start + object.len());
        Self { bytes, start }
    }

    /// The object.
    pub fn object(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernel::load::OBJECT;

    #[test]
    fn calls_that_are_left_open_get_the_kernels_number_and_nothing_else_changes() {
        let left_open = OBJECT
            .chunks_exact(INSTRUCTION)
            .filter(|instruction| **instruction == patch::helper_call(CAST));
        assert!(left_open.count() > 0, "the object has none");

        let patched = Patched::new(OBJECT, 0x0102_0304);

        let patched = patched.object();
        assert_eq!(patched.as_ptr().align_offset(INSTRUCTION), 0);
        let (whole, rest) = OBJECT.split_at(OBJECT.len() / INSTRUCTION * INSTRUCTION);
        assert_eq!(&patched[whole.len()..], rest);
        for (before, after) in
            whole.chunks_exact(INSTRUCTION).zip(patched.chunks_exact(INSTRUCTION))
        {
            let wanted = if *before == patch::helper_call(CAST) {
                [0x85, 0x20, 0, 0, 4, 3, 2, 1].as_slice()
            } else {
                before
            };
            assert_eq!(after, wanted);
        }
    }
}
