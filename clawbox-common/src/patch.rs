//! What programs leave open and the agent fills in, in the object's instructions, before it loads it:
//! offsets of fields and calls of kernel functions, whose numbers are each kernel's own.

/// Offset of the load of the first of [`crate::field::ALL`]; further than any that a program has by
/// itself.
pub const FIRST_LOAD: i16 = 0x7c00;

/// What stands for the offset of the first field where that is a number of its own.
pub const FIRST_OFFSET: i32 = 0x7c0c_0000;

/// What stands for a field's offset in a load.
#[must_use]
pub const fn load_of(field: u16) -> i16 {
    FIRST_LOAD + field as i16
}

/// What stands for a field's offset as a number of its own.
#[must_use]
pub const fn offset_of(field: u16) -> i32 {
    FIRST_OFFSET + field as i32
}

/// The number by which programs call `bpf_rdonly_cast(address, type)`, kernel/bpf/helpers.c, since
/// 6.2. Where a kernel has none the call stays as it is: the programs' way there must be dead.
pub const CAST: u32 = 0x7c0b_0001;

/// A call of a helper, as an instruction: opcode, registers, offset, number.
#[must_use]
pub const fn helper_call(number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    [BPF_CALL, 0, 0, 0, a, b, c, d]
}

/// A call of a kernel function by its number in the kernel's own types.
#[must_use]
pub const fn kernel_call(number: u32) -> [u8; 8] {
    let [a, b, c, d] = number.to_le_bytes();
    [BPF_CALL, BPF_PSEUDO_KFUNC_CALL << 4, 0, 0, a, b, c, d]
}

/// `BPF_JMP | BPF_CALL`, uapi/linux/bpf.h.
const BPF_CALL: u8 = 0x85;
/// uapi/linux/bpf.h; the source register is in the upper half of its byte.
const BPF_PSEUDO_KFUNC_CALL: u8 = 2;
