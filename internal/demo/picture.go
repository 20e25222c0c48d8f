package demo

import (
	"bytes"
	"fmt"
	"image"
	"image/color"
	"image/png"
	"math"
)

// Picture paints a banner and returns it as a PNG of at least size bytes, and at most two per cent and 500 bytes more where
// size is above 8,000. The grain that makes it as heavy as a photograph is the same at every start.
func Picture(size int) ([]byte, error) {
	const bytesPerPixel = 1.5 // what a grainy pixel weighs at least
	width := max(480, int(math.Sqrt(4*float64(size)/bytesPerPixel)))
	b := banner{image.NewRGBA(image.Rect(0, 0, width, width/4))}
	all := width * (width / 4)
	b.paint(0)
	smooth, err := b.encode()
	if err != nil || len(smooth) >= size {
		return smooth, err
	}
	// The weight grows with the grainy pixels: a few steps of interpolation find a picture that is just heavy enough.
	const most = 2.3 // bytes that a grainy pixel weighs
	low, high, lowSize, highSize := 0, all, len(smooth), len(smooth)+int(most*float64(all))
	var best []byte
	for range 12 {
		grain := low + int(float64(high-low)*float64(size+size/200-lowSize)/float64(highSize-lowSize))
		if grain <= low || grain >= high {
			grain = (low + high + 1) / 2
		}
		b.paint(grain)
		painted, err := b.encode()
		if err != nil {
			return nil, err
		}
		if len(painted) < size {
			low, lowSize = grain, len(painted)
			continue
		}
		high, highSize, best = grain, len(painted), painted
		if len(painted) <= size+size/80 {
			break
		}
	}
	if best == nil {
		return nil, fmt.Errorf("a picture of %d pixels cannot weigh %d bytes", all, size)
	}
	return best, nil
}

type banner struct{ img *image.RGBA }

// paint draws a sky with three suns and puts grain on about that many pixels, spread evenly.
func (b banner) paint(grain int) {
	box := b.img.Bounds()
	w, h := box.Dx(), box.Dy()
	for y := range h {
		for x := range w {
			c := color.RGBA{uint8(40 + 170*x/w), uint8(60 + 60*y/h), uint8(140 - 70*x/w), 255} //nolint:gosec // within 0 to 255
			for i, sun := range []color.RGBA{{255, 214, 102, 255}, {255, 159, 67, 255}, {238, 82, 83, 255}} {
				dx, dy, r := x-w*(i+1)/4, y-h/2, h/3
				if dx*dx+dy*dy < r*r {
					c = sun
				}
			}
			if m := mix(uint64(y*w + x)); m>>32%uint64(w*h) < uint64(grain) { //nolint:gosec // counts from 0
				c.R, c.G, c.B = shade(c.R, m), shade(c.G, m>>8), shade(c.B, m>>16)
			}
			b.img.SetRGBA(x, y, c)
		}
	}
}

// shade moves a colour by -32 to +31.
func shade(c uint8, m uint64) uint8 {
	return uint8(min(255, max(0, int(c)+int(m&63)-32))) //nolint:gosec // clamped
}

func (b banner) encode() ([]byte, error) {
	var out bytes.Buffer
	if err := png.Encode(&out, b.img); err != nil {
		return nil, fmt.Errorf("encode picture: %w", err)
	}
	return out.Bytes(), nil
}
