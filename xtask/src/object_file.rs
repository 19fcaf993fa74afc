//! What of the linker's object the agent carries: programs, maps and their types, no DWARF.
//! DWARF is nine tenths of it, and every `clawbox run` would read it and hold it in memory.

use anyhow::{Context, Result};
use object::build::elf::{Builder, Section, SectionData};
use object::elf;

/// An ELF object without debug sections. Types (`.BTF`) stay, and so does `.BTF.ext`, with the
/// source lines that a verifier's message names.
pub fn without_debug_sections(object: &[u8]) -> Result<Vec<u8>> {
    let mut builder = Builder::read(object).context("the linker's output is no ELF object")?;
    for section in builder.sections.iter_mut() {
        let name = section.name.as_slice();
        // Relocations of type information are for linkers; a loader finds it relocated in place.
        let is_type_relocation = name.starts_with(b".rel.BTF");
        let is_debug = name.starts_with(b".debug_") || name.starts_with(b".rel.debug_");
        section.delete = is_debug || is_type_relocation;
    }
    builder.delete_orphans();
    // LLVM keeps names of sections and of symbols in one table; this writer keeps two.
    let names_sections = |section: &Section<'_>| matches!(section.data, SectionData::SectionString);
    if !builder.sections.iter().any(names_sections) {
        add_section_names(&mut builder);
    }
    let mut stripped = Vec::new();
    builder.write(&mut stripped).context("cannot write the object without debug sections")?;
    Ok(stripped)
}

fn add_section_names(builder: &mut Builder<'_>) {
    let names = builder.sections.add();
    names.name = ".shstrtab".into();
    names.sh_type = elf::SHT_STRTAB;
    names.sh_addralign = 1;
    names.data = SectionData::SectionString;
}

#[cfg(test)]
mod tests {
    use object::Endianness;

    use super::*;

    #[test]
    fn programs_and_types_stay_and_debug_sections_go() {
        let mut builder = Builder::new(Endianness::Little, true);
        builder.header.e_type = elf::ET_REL;
        builder.header.e_machine = elf::EM_BPF;
        let names = ["cgroup/connect4", ".BTF", ".BTF.ext", ".debug_info", ".debug_str"];
        for name in names {
            let section = builder.sections.add();
            section.name = name.into();
            section.sh_type = elf::SHT_PROGBITS;
            section.sh_addralign = 1;
            section.data = SectionData::Data(name.as_bytes().into());
        }
        add_section_names(&mut builder);
        let mut whole = Vec::new();
        builder.set_section_sizes();
        builder.write(&mut whole).unwrap();

        let stripped = without_debug_sections(&whole).unwrap();

        let left = Builder::read(stripped.as_slice()).unwrap();
        let left: Vec<String> =
            left.sections.iter().map(|section| section.name.to_string()).collect();
        assert_eq!(left, ["cgroup/connect4", ".BTF", ".BTF.ext", ".shstrtab"]);
    }

    #[test]
    fn what_is_no_object_is_an_error() {
        assert!(without_debug_sections(b"#!/bin/sh\n").is_err());
    }
}
