package amx

// Multiply does the product. It forgets C, A and B, and leaves all else but Ahead as it was.
func (p *Product) Multiply() {
	p.shape()
	switch few := p.Rows <= tileRows; {
	case few && p.Parts == 1:
		few1(p)
	case few:
		few3(p)
	case p.Parts == 1:
		many1(p)
	default:
		many3(p)
	}
	p.C, p.A, p.B = nil, nil, nil
}
