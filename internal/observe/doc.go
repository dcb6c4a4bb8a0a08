// Package observe counts what a process does, for people who run it: metrics for Prometheus and the admin port that serves them.
//
// The way of a number: All names each metric once, with its unit and its meaning. The step's path counts into Worker or
// Coordinator (instruments.go): atomic additions that take no memory. Everything else is read at the moment of a scrape from where
// `coord status` reads it as well (Registry.Read), so the two can not differ. Serve (admin.go) answers on the admin port.
//
// A nil *Worker and a nil *Coordinator count nothing, so a process without an admin port pays for a comparison.
package observe
