// Package rpc is what both ends of a connection share: the protocol's version and how it is negotiated, the options of
// servers and connections, connections that several users share (Conns), the sizes of messages, and the codec that sends
// and receives large fields without copies.
//
// The way of a message: a SelfCoded message encodes itself (MessageCodec); every other is left to the protobuf codec. SendBulk and
// RecvBulk make any message one of these: its large fields are sent from where they lie, and received into one pooled Buffer
// in which they lie afterwards. The bytes on the wire are protobuf's, so each end works with generated code of any language.
// 256 MiB over loopback in messages of 1 MiB took 0.11 to 0.14 s on two cores of a Zen 3 machine, and 0.20 to 0.28 s as
// generated messages (go test ./internal/rpc -run '^$' -bench Stream prints both).
//
// Each call carries its sender's version in the metadata key "headwater-protocol". A server refuses a client of another
// major version by name, and answers with its own version in the header, so that a client can refuse a server as well.
package rpc

import (
	"context"
	"fmt"
	"log/slog"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/health"
	healthv1 "google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/reflection"
	"google.golang.org/grpc/status"
)

// version is the protocol's version, MAJOR.MINOR. A minor version adds what older peers ignore, or what only some services need of
// both ends: see checkService.
const Version = "1.4"

// sessionService is the service of which both ends speak at least the minor version sessionMinor: since then a step, a fork and a
// truncation name the state that they build on by ids that older peers do not know.
const (
	coordinatorService = "/headwater.v1.CoordinatorService/"
	workerService      = "/headwater.v1.WorkerService/"
	clusterService     = "/headwater.v1.ClusterService/"
	fillService        = "/headwater.v1.FillService/"
	reflectionService  = "/grpc.reflection."

	sessionService = "/headwater.v1.SessionService/"
	laneMethod     = sessionService + "Lane"
	sessionMinor   = 2
)

// MetadataKey carries a peer's protocol version.
const MetadataKey = "headwater-protocol"

// BlockBytes is the size to which senders cut bulk data. A message is at most MaxMessageBytes: one query token of the
// largest group fits (4,096 heads of 512 elements, 8 MiB), and a hidden state with its weights' row.
const (
	BlockBytes      = 1 << 20
	MaxMessageBytes = 32 << 20
	// MaxAnswerBytes bounds the raw bytes of an answer so that it fits a message with its coding and its other fields.
	MaxAnswerBytes = MaxMessageBytes - 64<<10
	// maxReceiveBytes is what gRPC reads of a message, so that a lane's message that is too large is refused by name. Beyond it
	// gRPC ends the call itself.
	maxReceiveBytes = 2 * MaxMessageBytes
	// maxHeaderBytes bounds the metadata of a call. What is beyond is refused by name, and gRPC refuses what is beyond twice that, which
	// it does not tell.
	maxHeaderBytes = 64 << 10
)

// Time after which a silent connection is probed, and that the answer may take. A peer that hangs is lost after the sum,
// and with connectTimeout for the attempt to reach it again, a call on it ends after 20 s.
const (
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
	// connectTimeout is what one attempt to connect may take, and a client that connects: who says nothing is let go.
	connectTimeout = 5 * time.Second
)

// ServerOption says how a server differs from others.
type ServerOption func(*serverOptions)

type serverOptions struct {
	log      *slog.Logger
	security *Security
	lanes    *Lanes
}

// LogTo makes a server log to log, and not to slog.Default.
func LogTo(log *slog.Logger) ServerOption { return func(o *serverOptions) { o.log = log } }

// Secure makes a server speak as the security says. The server's role is that of the security's certificate.
func Secure(s *Security) ServerOption { return func(o *serverOptions) { o.security = s } }

// ServeLanes makes a server whose calls a Flight counts, and which speaks TLS, hand the connections of plain lanes to lanes.
func ServeLanes(lanes *Lanes) ServerOption { return func(o *serverOptions) { o.lanes = lanes } }

// ServerOptions returns what every Headwater server is made with.
func ServerOptions(options ...ServerOption) []grpc.ServerOption {
	var o serverOptions
	for _, set := range options {
		set(&o)
	}
	guardUnary, guardStream := guardCalls(o.log)
	return append([]grpc.ServerOption{
		grpc.ForceServerCodecV2(MessageCodec{}),
		grpc.ConnectionTimeout(connectTimeout),
		grpc.MaxRecvMsgSize(maxReceiveBytes),
		grpc.MaxHeaderListSize(2 * maxHeaderBytes),
		grpc.MaxSendMsgSize(MaxMessageBytes),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.ChainUnaryInterceptor(guardUnary, checkUnary),
		grpc.ChainStreamInterceptor(guardStream, checkStream),
	}, o.security.serverOptions()...)
}

// Register adds the health service, with the named services and the server as a whole serving, and reflection.
func Register(s *grpc.Server, services ...string) *health.Server {
	h := health.NewServer()
	for _, name := range append(services, "") {
		h.SetServingStatus(name, healthv1.HealthCheckResponse_SERVING)
	}
	healthv1.RegisterHealthServer(s, h)
	reflection.Register(s)
	return h
}

// healthConns bounds the connections of a server for probes, and the calls.
const healthConns = 64

// NewHealthServer returns a server that answers health checks in plain text, and nothing else: for probes that have no certificate.
func NewHealthServer(h *health.Server, log *slog.Logger) *grpc.Server {
	flight := NewFlight(FlightConfig{Streams: healthConns, Conns: healthConns, Logger: log})
	s := grpc.NewServer(flight.ServerOptions(LogTo(log))...)
	healthv1.RegisterHealthServer(s, h)
	return s
}

// check refuses a peer of another major version. Tools that send no version (probes, reflection clients) are let in.
func check(version string) error {
	if version == "" {
		return nil
	}
	major, _, ok := strings.Cut(version, ".")
	own, _, _ := strings.Cut(Version, ".")
	if _, err := strconv.ParseUint(major, 10, 32); err != nil || !ok {
		return status.Errorf(codes.InvalidArgument, "protocol version %q is not MAJOR.MINOR", version)
	}
	if major != own {
		return status.Errorf(codes.FailedPrecondition, "peer speaks headwater protocol %s, this side speaks %s: the major versions differ", version, Version)
	}
	return nil
}

// checkService refuses a peer that speaks too old a minor version for a method's service.
func checkService(version, method string) error {
	if err := check(version); err != nil || version == "" {
		return err
	}
	_, minor, _ := strings.Cut(version, ".")
	if n, err := strconv.Atoi(minor); strings.HasPrefix(method, sessionService) && (err != nil || n < sessionMinor) {
		return status.Errorf(codes.FailedPrecondition, "peer speaks headwater protocol %s, this side speaks %s: sessions need 1.%d at both sides", version, Version, sessionMinor)
	}
	return nil
}

// Before says whether the header of a server of this major version names a minor version before one.
func Before(header metadata.MD, minor int) bool {
	for _, v := range header.Get(MetadataKey) {
		_, named, _ := strings.Cut(v, ".")
		n, err := strconv.Atoi(named)
		return err == nil && n < minor && check(v) == nil
	}
	return false
}

func checkUnary(ctx context.Context, req any, info *grpc.UnaryServerInfo, handle grpc.UnaryHandler) (any, error) {
	if err := checkIncoming(ctx, info.FullMethod); err != nil {
		return nil, err
	}
	return handle(ctx, req)
}

func checkStream(srv any, stream grpc.ServerStream, info *grpc.StreamServerInfo, handle grpc.StreamHandler) error {
	if err := checkIncoming(stream.Context(), info.FullMethod); err != nil {
		return err
	}
	return handle(srv, stream)
}

func checkIncoming(ctx context.Context, method string) error {
	// A header that can not be set is a stream that has ended; the handler will see it.
	_ = grpc.SetHeader(ctx, metadata.Pairs(MetadataKey, Version))
	return checkVersions(metadata.ValueFromIncomingContext(ctx, MetadataKey), method)
}

// checkVersions refuses a call that names a version with which the method's service can not be spoken.
func checkVersions(named []string, method string) error {
	for _, v := range named {
		if err := checkService(v, method); err != nil {
			return err
		}
	}
	return nil
}

// CheckHeader refuses the answer of a server whose header names another major version.
func CheckHeader(peer string, header metadata.MD) error {
	for _, v := range header.Get(MetadataKey) {
		if err := check(v); err != nil {
			return fmt.Errorf("%s: %w", peer, err)
		}
	}
	return nil
}
