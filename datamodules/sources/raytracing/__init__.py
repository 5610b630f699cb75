"""Ray tracing by Sionna RT: scenes, areas of cities, and digital twins."""
