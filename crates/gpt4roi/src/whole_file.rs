//! Whether the file of a picture is whole. The decoders of JPEG and WebP make a picture of what there is of it: grey
//! takes the place of rows that are missing, and what stands behind the pixels, such as how they are to be turned, is
//! as if it had never been there. PNG's decoder misses what is missing by itself.

use std::io::{self, BufRead, ErrorKind, Seek};

use image::ImageFormat;

use crate::image::ImageError;

/// Refuses a file that was cut off. Afterwards the reader stands at its beginning again.
///
/// Pillow refuses such files, too. Where the last two bytes of a JPEG file are missing and nothing else is, it depends
/// on how much its decoder reads ahead, and nearly all are refused; here all are.
pub(crate) fn check(reader: &mut (impl BufRead + Seek)) -> Result<(), ImageError> {
    let format = image::guess_format(reader.fill_buf().map_err(ImageError::Unread)?);
    let missing = match format {
        Ok(ImageFormat::Jpeg) => jpeg(reader).map(|()| None),
        Ok(ImageFormat::WebP) => webp(reader),
        _ => return Ok(()),
    };
    let missing = match missing {
        Err(error) if error.kind() == ErrorKind::UnexpectedEof => Some("it ends before its end mark".into()),
        missing => missing.map_err(ImageError::Unread)?,
    };
    match missing {
        Some(missing) => Err(ImageError::Corrupt(format!("the file was cut off: {missing}"))),
        None => reader.rewind().map_err(ImageError::Unread),
    }
}

/// Finds the mark at the end of a JPEG file. What stands in segments is passed over, such as a small picture with an end
/// of its own.
///
/// Source: ITU T.81, annex B.
fn jpeg(reader: &mut (impl BufRead + Seek)) -> io::Result<()> {
    const END: u8 = 0xD9;
    loop {
        match marker(reader)? {
            END => return Ok(()),
            // A byte of the pixels, or marks without a segment: TEM, RST0 to RST7 and SOI.
            0x00 | 0x01 | 0xD0..=0xD8 => {}
            _ => {
                let mut length = [0; 2];
                reader.read_exact(&mut length)?;
                let length = u16::from_be_bytes(length); // with its own two bytes
                reader.seek_relative(i64::from(length.saturating_sub(2)))?;
            }
        }
    }
}

/// The byte behind the next FF, of which there may be several.
fn marker(reader: &mut impl BufRead) -> io::Result<u8> {
    reader.skip_until(0xFF)?;
    let mut byte = [0xFF];
    while byte == [0xFF] {
        reader.read_exact(&mut byte)?;
    }
    Ok(byte[0])
}

/// Holds the length of a WebP file against what its first twelve bytes say; what is missing, if anything is.
///
/// Source: RFC 9649, section 2.4.
fn webp(reader: &mut (impl BufRead + Seek)) -> io::Result<Option<String>> {
    let mut header = [0; 8];
    reader.read_exact(&mut header)?;
    let [.., a, b, c, d] = header;
    let expected = 8 + u64::from(u32::from_le_bytes([a, b, c, d]));
    let got = reader.seek(io::SeekFrom::End(0))?;
    Ok((got < expected).then(|| format!("expected {expected} bytes, got {got}")))
}
