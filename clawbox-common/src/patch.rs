//! What programs leave open and the agent fills in, in the object's instructions, before it loads it:
//! calls of kernel functions, whose numbers are each kernel's own.

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
