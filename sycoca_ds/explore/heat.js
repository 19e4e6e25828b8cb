// Scores of patches as colours over a picture, as eval/pictures.py draws them: lowest dark, highest light.

const STRENGTH = 0.65;

export function colour(share, anchors) {
  const place = Math.min(1, Math.max(0, share)) * (anchors.length - 1), low = Math.min(Math.floor(place), anchors.length - 2);
  return anchors[low].map((value, channel) => Math.round(value + (anchors[low + 1][channel] - value) * (place - low)));
}

export function drawScale(canvas, anchors) {
  canvas.width = 256;
  canvas.height = 1;
  const context = canvas.getContext("2d"), pixels = context.createImageData(256, 1);
  for (let x = 0; x < 256; x++) pixels.data.set([...colour(x / 255, anchors), 255], 4 * x);
  context.putImageData(pixels, 0, 0);
}

// picture: an image that is loaded. scores: side * side numbers, row by row. cursor: the number of a patch that is framed, or null.
export function drawHeat(canvas, picture, scores, side, [low, high], anchors, cursor) {
  const size = side * Math.max(1, Math.round(560 / side)), context = canvas.getContext("2d", { willReadFrequently: true });
  canvas.width = canvas.height = size;
  context.imageSmoothingEnabled = picture.naturalWidth > 128;
  context.drawImage(picture, 0, 0, size, size);
  const pixels = context.getImageData(0, 0, size, size), data = pixels.data, step = size / side;
  const colours = scores.map((score) => colour(high > low ? (score - low) / (high - low) : 0, anchors));
  for (let y = 0; y < size; y++) {
    for (let x = 0; x < size; x++) {
      const at = 4 * (y * size + x), grey = ((data[at] + data[at + 1] + data[at + 2]) / 3) * (1 - STRENGTH);
      const over = colours[Math.floor(y / step) * side + Math.floor(x / step)];
      for (let channel = 0; channel < 3; channel++) data[at + channel] = over[channel] * STRENGTH + grey;
    }
  }
  context.putImageData(pixels, 0, 0);
  if (cursor !== null) {
    context.lineWidth = Math.max(2, size / 140);
    context.strokeStyle = "#fff";
    context.strokeRect((cursor % side) * step + 1, Math.floor(cursor / side) * step + 1, step - 2, step - 2);
  }
}
