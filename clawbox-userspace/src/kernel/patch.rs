//! Fills in what the object's instructions leave open: where fields of structures are in this kernel,
//! and the numbers of its functions. aya relocates neither for programs that rustc compiled.

use std::ops::Range;

use clawbox_common::patch::{self, CAST, FIRST_LOAD, FIRST_OFFSET};
use object::{Object, ObjectSection, SectionKind};

/// Bytes of an instruction, to which programs in an object are aligned.
const INSTRUCTION: usize = 8;

// Opcodes, uapi/linux/bpf.h and bpf_common.h.
/// `BPF_LDX | BPF_MEM` for words of four, two, one and eight bytes.
const LOADS: [u8; 4] = [0x61, 0x69, 0x71, 0x79];
/// `BPF_ALU64 | BPF_MOV | BPF_K`.
const MOVE: u8 = 0xb7;
/// `BPF_LD | BPF_IMM | BPF_DW`, which takes two instructions' room.
const LOAD_WIDE: u8 = 0x18;

/// Why an object cannot be filled in.
#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    /// It is no ELF object.
    #[error(transparent)]
    Object(#[from] object::Error),
    /// It was built with other fields than the agent.
    #[error("an instruction asks for field {0}, which there is not")]
    Unknown(usize),
    /// No instruction can hold it.
    #[error("field {field} is {offset} bytes into its structure, further than a load reaches")]
    TooFar {
        /// Its number.
        field: usize,
        /// Where it is.
        offset: u32,
    },
}

/// An object with this kernel's numbers in it, aligned as the ELF reader needs it.
pub struct Patched {
    bytes: Vec<u8>,
    start: usize,
}

impl Patched {
    /// A copy of `object` in which [`clawbox_common::field::ALL`] are at `offsets`, and
    /// `bpf_rdonly_cast` is called by its number in the kernel's types; zero is none.
    pub fn new(object: &[u8], offsets: &[u32], cast: u32) -> Result<Self, PatchError> {
        let mut bytes = vec![0; object.len() + INSTRUCTION];
        let start = bytes.as_ptr().align_offset(INSTRUCTION).min(INSTRUCTION);
        bytes.truncate(start + object.len());
        bytes[start..].copy_from_slice(object);
        for program in programs(object)? {
            let Some(code) = bytes[start..].get_mut(program) else { continue };
            patch(code, offsets, cast)?;
        }
        Ok(Self { bytes, start })
    }

    /// The object.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes[self.start..]
    }
}

/// Where an object's instructions are.
fn programs(object: &[u8]) -> Result<Vec<Range<usize>>, object::Error> {
    let file = object::File::parse(object)?;
    let programs = file.sections().filter(|section| section.kind() == SectionKind::Text);
    let ranges = programs.filter_map(|section| {
        let (start, length) = section.file_range()?;
        let start = usize::try_from(start).ok()?;
        Some(start..start.checked_add(usize::try_from(length).ok()?)?)
    });
    Ok(ranges.collect())
}

fn patch(code: &mut [u8], offsets: &[u32], cast: u32) -> Result<(), PatchError> {
    let at = |field: usize| offsets.get(field).copied().ok_or(PatchError::Unknown(field));
    let mut instructions = code.chunks_exact_mut(INSTRUCTION);
    while let Some(instruction) = instructions.next() {
        let [opcode, _, near, far, a, b, c, d] = *instruction else { continue };
        let (offset, number) = (i16::from_le_bytes([near, far]), i32::from_le_bytes([a, b, c, d]));
        match opcode {
            LOAD_WIDE => {
                instructions.next();
            }
            _ if LOADS.contains(&opcode) && offset >= FIRST_LOAD => {
                let field = usize::from((offset - FIRST_LOAD).cast_unsigned());
                let offset = at(field)?;
                let fits = i16::try_from(offset).ok().filter(|offset| *offset < FIRST_LOAD);
                let fits = fits.ok_or(PatchError::TooFar { field, offset })?;
                instruction[2..4].copy_from_slice(&fits.to_le_bytes());
            }
            MOVE if is_field(number) => {
                let field = usize::from((number - FIRST_OFFSET).cast_unsigned() as u16);
                instruction[4..].copy_from_slice(&at(field)?.to_le_bytes());
            }
            _ if *instruction == patch::helper_call(CAST) && cast != 0 => {
                instruction.copy_from_slice(&patch::kernel_call(cast));
            }
            _ => {}
        }
    }
    Ok(())
}

/// Whether a number stands for a field's offset.
const fn is_field(number: i32) -> bool {
    number >= FIRST_OFFSET && number - FIRST_OFFSET <= u16::MAX as i32
}

#[cfg(test)]
mod tests {
    use clawbox_common::field;

    use super::*;
    use crate::kernel::load::OBJECT;

    /// `r1 = *(u32 *)(r2 + offset)`.
    fn load(offset: i16) -> [u8; INSTRUCTION] {
        let [near, far] = offset.to_le_bytes();
        [0x61, 0x21, near, far, 0, 0, 0, 0]
    }

    /// `r1 = number`.
    fn number(number: i32) -> [u8; INSTRUCTION] {
        let [a, b, c, d] = number.to_le_bytes();
        [MOVE, 1, 0, 0, a, b, c, d]
    }

    #[test]
    fn what_is_left_open_is_filled_in_and_the_rest_stays() {
        let wide = {
            let [a, b, c, d] = FIRST_OFFSET.to_le_bytes();
            // Its second half looks like a load of a field.
            [[LOAD_WIDE, 1, 0, 0, a, b, c, d], load(FIRST_LOAD)].concat()
        };
        let call = patch::helper_call(CAST);
        let rows: [(&[u8], &[u8]); 8] = [
            (&load(patch::load_of(1)), &load(300)),
            (&load(patch::load_of(0)), &load(0)),
            (&load(512), &load(512)),
            (&number(patch::offset_of(1)), &number(300)),
            (&number(77), &number(77)),
            (&call, &[0x85, 0x20, 0, 0, 4, 3, 2, 1]),
            (&patch::helper_call(6), &patch::helper_call(6)),
            (&wide, &wide),
        ];
        for (before, after) in rows {
            let mut code = before.to_vec();
            patch(&mut code, &[0, 300], 0x0102_0304).unwrap();
            assert_eq!(code, after, "{before:?}");
        }
        let mut code = call;
        patch(&mut code, &[], 0).unwrap();
        assert_eq!(code, call, "a kernel without the function");
    }

    #[test]
    fn what_cannot_be_filled_in_is_an_error() {
        let refused = |mut code: [u8; INSTRUCTION], offsets: &[u32]| {
            patch(&mut code, offsets, 0).unwrap_err().to_string()
        };
        assert!(refused(load(patch::load_of(2)), &[0, 1]).contains("field 2"));
        assert!(refused(number(patch::offset_of(2)), &[0, 1]).contains("field 2"));
        assert!(refused(load(patch::load_of(0)), &[40_000]).contains("40000 bytes"));
        assert!(Patched::new(b"#!/bin/sh", &[], 0).is_err());
    }

    #[test]
    fn nothing_in_the_programs_is_left_open() {
        let offsets: Vec<u32> = (0..field::ALL.len() as u32).map(|number| 8 * number).collect();
        let patched = Patched::new(OBJECT, &offsets, 7).unwrap();
        assert_eq!(patched.bytes().as_ptr().align_offset(INSTRUCTION), 0);
        assert_eq!(patched.bytes().len(), OBJECT.len());
        // Filled in, it asks for no field: none are needed the second time.
        let again = Patched::new(patched.bytes(), &[], 0).unwrap();
        assert_eq!(again.bytes(), patched.bytes());
        assert_ne!(patched.bytes(), OBJECT);
    }
}
