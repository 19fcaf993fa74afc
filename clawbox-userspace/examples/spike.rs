fn main() {
    let sizes = clawbox::kernel::load::Sizes { rules: 64, addresses: 64, binaries: 64, scripts: 64, sandboxes: 4 };
    let t = std::time::Instant::now();
    let root = std::env::args().nth(1).unwrap();
    match clawbox::kernel::load::Programs::load(std::path::Path::new(&root), 2, sizes) {
        Ok(p) => { println!("loaded in {:?}", t.elapsed());
          for (n, prog) in p.ebpf.programs() { println!("{n} {:?}", prog.info().unwrap().verified_instruction_count()); } }
        Err(e) => { println!("{e}"); let mut s: &dyn std::error::Error = &e; while let Some(n) = s.source() { println!("  by: {n}"); s = n; } }
    }
}
