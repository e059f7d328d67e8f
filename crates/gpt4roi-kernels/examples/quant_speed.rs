//! Measures products with quantised weights: one row of activations, a few, and a whole prompt.
//!
//! ```console
//! RAYON_NUM_THREADS=2 cargo run --release -p gpt4roi-kernels --example quant_speed
//! ```
//!
//! The matrices have the shape of LLaMA's feed-forward part and together exceed every cache. Prints how fast
//! blocks are packed, and medians of the time of one product.
#![expect(clippy::print_stdout, reason = "the result goes there")]

use std::time::Instant;

use gpt4roi_kernels::{QuantError, QuantFormat, QuantMatrix};

const ROWS: usize = 11_008;
const COLUMNS: usize = 4096;
const MATRICES: usize = 8;
const ROUNDS: usize = 5;

fn main() -> Result<(), QuantError> {
    println!("format  packing GB/s   rows      ms  weights GB/s  GFLOP/s");
    for (format, scales) in
        [(QuantFormat::Q4K, [0, 2].as_slice()), (QuantFormat::Q6K, &[208]), (QuantFormat::Q8_0, &[0])]
    {
        let blocks = blocks(format, scales);
        let started = Instant::now();
        let matrices = (0..MATRICES).map(|_| QuantMatrix::new(format, ROWS, COLUMNS, &blocks));
        let matrices = matrices.collect::<Result<Vec<_>, _>>()?;
        let packing = (MATRICES * blocks.len()) as f64 / started.elapsed().as_secs_f64() / 1e9;
        for n in [1, 2, 4, 8, 16, 320] {
            let seconds = product_seconds(&matrices, n);
            let bandwidth = matrices[0].bytes() as f64 / seconds / 1e9;
            let speed = 2.0 * (n * ROWS * COLUMNS) as f64 / seconds / 1e9;
            println!(
                "{:6}  {packing:12.2} {n:6} {:7.2} {bandwidth:13.1} {speed:8.0}",
                format!("{format:?}"),
                1e3 * seconds
            );
        }
    }
    Ok(())
}

/// The median over all matrices and rounds.
fn product_seconds(matrices: &[QuantMatrix], n: usize) -> f64 {
    let x: Vec<f32> = random().take(n * COLUMNS).map(|z| f32::from(z as i8) / 64.0).collect();
    let mut y = vec![0.0; n * ROWS];
    let mut times = Vec::with_capacity(ROUNDS * MATRICES);
    for matrix in std::iter::repeat_n(matrices, ROUNDS).flatten() {
        let started = Instant::now();
        matrix.product(&x, &mut y);
        times.push(started.elapsed().as_secs_f64());
    }
    times.sort_by(f64::total_cmp);
    times[times.len() / 2]
}

/// Random blocks with small scales, which lie in these places.
fn blocks(format: QuantFormat, scales: &[usize]) -> Vec<u8> {
    let bytes = ROWS * COLUMNS / format.block_columns() * format.block_bytes();
    let mut blocks: Vec<u8> = random().flat_map(u64::to_le_bytes).take(bytes).collect();
    for block in blocks.chunks_exact_mut(format.block_bytes()) {
        for &place in scales {
            block[place..place + 2].copy_from_slice(&[0x00, 0x11]); // 0.0006 in half precision
        }
    }
    blocks
}

/// Xorshift64.
fn random() -> impl Iterator<Item = u64> {
    std::iter::successors(Some(1u64), |&x| {
        let x = x ^ (x << 13);
        let x = x ^ (x >> 7);
        Some(x ^ (x << 17))
    })
}
